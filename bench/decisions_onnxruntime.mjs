// Whether ONNX Runtime, given a cached network whose exits are nested in `If` nodes, answers where we do.
//   npm install --ignore-scripts onnxruntime-node        (in a folder of its own, then there:)
//   node .../bench/decisions_onnxruntime.mjs .../offramp CACHED.onnx DATA
// DATA is fashion-mnist:DIR (its test images) or cifar10:FILE.bin, as the tool takes them. Every sample goes through the
// nested file; which exit it left at shows in the logits, which are those of that exit in CACHED.onnx. Exit code 1 where
// the number of samples at an exit, or the accuracy, is not what `offramp eval` says.
import { execFileSync } from 'node:child_process';
import { createRequire } from 'node:module';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import zlib from 'node:zlib';
const ort = createRequire(path.join(process.cwd(), 'x.js'))('onnxruntime-node');

const [tool, file, spec] = process.argv.slice(2);
const colon = spec.indexOf(':'), kind = spec.slice(0, colon), where = spec.slice(colon + 1);

function samples() {
  if (kind === 'cifar10') {
    const bytes = fs.readFileSync(where), size = 1 + 3072;
    return Array.from({ length: bytes.length / size }, (_, i) => ({
      shape: [1, 3, 32, 32], label: bytes[i * size], pixels: bytes.subarray(i * size + 1, (i + 1) * size),
    }));
  }
  if (kind !== 'fashion-mnist') throw new Error(`no data set ${spec}`);
  const read = (name) => {
    const plain = path.join(where, name);
    return fs.existsSync(plain) ? fs.readFileSync(plain) : zlib.gunzipSync(fs.readFileSync(`${plain}.gz`));
  };
  const images = read('t10k-images-idx3-ubyte').subarray(16), labels = read('t10k-labels-idx1-ubyte').subarray(8);
  return Array.from(labels, (label, i) => ({ shape: [1, 1, 28, 28], label, pixels: images.subarray(i * 784, (i + 1) * 784) }));
}

const work = fs.mkdtempSync(path.join(os.tmpdir(), 'decisions-')), nested = path.join(work, 'nested.onnx');
execFileSync(tool, ['save', file, '--nested-if', '--output', nested], { stdio: 'ignore' });
const options = { intraOpNumThreads: 1, logSeverityLevel: 3 };
const all = await ort.InferenceSession.create(file, options), early = await ort.InferenceSession.create(nested, options);
const count = Object.fromEntries([...all.outputNames, 'none of them'].map((name) => [name, 0]));
let right = 0, total = 0;
for (const { shape, label, pixels } of samples()) {
  const x = new ort.Tensor('float32', Float32Array.from(pixels, (p) => p / 255), shape);
  const logits = Object.values(await early.run({ [early.inputNames[0]]: x }))[0].data;
  let exit = 'none of them', least = 0.05;  // heads in bytes: ONNX Runtime rounds a few otherwise inside of an If
  for (const [name, { data }] of Object.entries(await all.run({ [all.inputNames[0]]: x }))) {
    const apart = Math.max(...data.map((v, i) => Math.abs(v - logits[i])));
    if (apart < least) [least, exit] = [apart, name];
  }
  ++count[exit];
  right += logits.indexOf(Math.max(...logits)) === label;
  ++total;
}
fs.rmSync(work, { recursive: true });

const data = kind === 'fashion-mnist' ? `${spec}:test` : spec;
const ours = JSON.parse(execFileSync(tool, ['eval', file, '--data', data, '--json'], { encoding: 'utf8' }));
const same = ours.accuracy === right / total && ours.exits.every((e) => e.samples === count[e.name]);
for (const e of ours.exits) console.log(e.name.padEnd(12), String(e.samples).padStart(8), String(count[e.name]).padStart(8));
console.log(`accuracy ${(100 * ours.accuracy).toFixed(2)} % and ${(100 * right / total).toFixed(2)} %, ${same ? 'the same' : 'NOT the same'} decisions`);
process.exit(same ? 0 : 1);
