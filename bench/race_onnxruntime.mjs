// Times this library and ONNX Runtime in turn on the same models, and prints the ratio of their medians.
//   npm install --ignore-scripts onnxruntime-node@1.30.0        in a folder of its own; run from there
//   node .../bench/race_onnxruntime.mjs TOOL MODEL.onnx ... [--batch B] [--threads T] [--pairs 5] [--seconds 1] [--core 0]
// Each pair is one process of ours, then one of theirs, pinned to the same cores, from `--core` on, where `taskset` is there:
// of two cores, one may have the busier neighbours. A model that was exported with an open batch takes any; one that
// fixes the batch is timed at that. A ratio above 1: we are faster.
// MB: the most memory that the process has had, less what it had before it loaded the network.
import { execFileSync } from 'node:child_process';
import { createRequire } from 'node:module';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const options = { batch: 1, threads: 1, pairs: 5, seconds: 1, core: 0 }, names = [];
for (let i = 2; i < process.argv.length; ++i) {
  const name = process.argv[i].replace(/^--/, '');
  if (name in options) options[name] = Number(process.argv[++i]);
  else names.push(process.argv[i]);
}
const median = (v) => [...v].sort((a, b) => a - b)[v.length >> 1];

async function time(model) {
  const ort = createRequire(path.join(process.cwd(), 'x.js'))('onnxruntime-node');
  const idle = process.resourceUsage().maxRSS;
  const session = await ort.InferenceSession.create(model, {
    intraOpNumThreads: options.threads, interOpNumThreads: 1, executionMode: 'sequential', graphOptimizationLevel: 'all',
  });
  const feeds = {};
  session.inputNames.forEach((name, k) => {
    const dims = session.inputMetadata[k].shape.map((d) => (typeof d === 'number' ? d : options.batch));
    const data = new Float32Array(dims.reduce((a, b) => a * b, 1));
    let seed = 1;
    for (let i = 0; i < data.length; ++i) data[i] = (seed = (Math.imul(seed, 1103515245) + 12345) >>> 0) / 2 ** 32;
    feeds[name] = new ort.Tensor('float32', data, dims);
  });
  const run = async () => {
    const start = process.hrtime.bigint();
    await session.run(feeds);
    return Number(process.hrtime.bigint() - start) / 1e6;
  };
  const until = async (seconds, times) => {
    for (let start = process.hrtime.bigint(); Number(process.hrtime.bigint() - start) / 1e9 < seconds || times.length < 5;) times.push(await run());
    return times;
  };
  await until(options.seconds / 4, []);
  const ms = median(await until(options.seconds, []));
  console.log(JSON.stringify({ ms, mb: (process.resourceUsage().maxRSS - idle) / 1024 }));
}

if (names[0] === 'time') {
  await time(names[1]);
} else {
  const [tool, ...models] = names;
  const flags = ['batch', 'threads', 'seconds'].flatMap((f) => [`--${f}`, String(options[f])]);
  const cores = Array.from({ length: options.threads }, (_, i) => options.core + i).join(',');
  const pinned = (command, args) => {
    let prefix = ['taskset', '-c', cores];
    try { execFileSync('taskset', ['-c', cores, 'true']); } catch { prefix = []; }
    const [first, ...rest] = [...prefix, command, ...args];
    return execFileSync(first, rest, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
  };
  let product = 1;
  console.log(`batch ${options.batch}, ${options.threads} thread(s), medians of ${options.pairs} pairs`);
  console.log('model'.padEnd(34), 'ours ms'.padStart(10), 'ORT ms'.padStart(10), 'ratio'.padStart(7), '  lowest - highest of the pairs', 'ours MB'.padStart(8), 'ORT MB'.padStart(8));
  for (const model of models) {
    const ours = [], theirs = [], ratios = [], memory = [];
    for (let i = 0; i < options.pairs; ++i) {
      const own = JSON.parse(pinned(tool, ['bench', model, '--json', ...flags]));
      const other = JSON.parse(pinned(process.execPath, [fileURLToPath(import.meta.url), 'time', model, ...flags]));
      ours.push(own.latency_ms.median);
      theirs.push(other.ms);
      memory.push([(own.peak_memory_bytes - own.memory_at_start_bytes) / 2 ** 20, other.mb]);
      ratios.push(theirs[i] / ours[i]);
    }
    product *= median(ratios);
    console.log(path.basename(model, '.onnx').padEnd(34), median(ours).toFixed(3).padStart(10), median(theirs).toFixed(3).padStart(10),
      median(ratios).toFixed(2).padStart(7), `  ${Math.min(...ratios).toFixed(2)} - ${Math.max(...ratios).toFixed(2)}`.padEnd(32),
      ...[0, 1].map((k) => median(memory.map((m) => m[k])).toFixed(0).padStart(8)));
  }
  console.log('geometric mean'.padEnd(34), (product ** (1 / models.length)).toFixed(2).padStart(29));
}
