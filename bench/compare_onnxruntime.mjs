// Holds the tool's outputs against ONNX Runtime's, batch 1 and 7: the largest difference over the largest magnitude.
//   npm install --ignore-scripts onnxruntime-node        (in a folder of its own, then there:)
//   node .../bench/compare_onnxruntime.mjs .../offramp MODEL.onnx... [--batches 1,7] [--shape C,H,W]
//     [--isa ISA] [--tolerance 1e-4] [--failed-only 1]
// A file that fixes its batch at 1 is given to ONNX Runtime sample by sample. Exit code 1 where a difference is above the
// tolerance or one of the two refuses what the other runs.
import { execFileSync } from 'node:child_process';
import { createRequire } from 'node:module';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
const ort = createRequire(path.join(process.cwd(), 'x.js'))('onnxruntime-node');

const files = [], option = { batches: '1,7', tolerance: '1e-4' };
for (let i = 3; i < process.argv.length; ++i) {
  if (process.argv[i].startsWith('--')) option[process.argv[i].slice(2)] = process.argv[++i];
  else files.push(process.argv[i]);
}
const tool = process.argv[2], work = fs.mkdtempSync(path.join(os.tmpdir(), 'compare-'));

function writeNpy(file, data, shape) {
  let h = `{'descr': '<f4', 'fortran_order': False, 'shape': (${shape.join(', ')}${shape.length === 1 ? ',' : ''}), }`;
  h += ' '.repeat(63 - ((10 + h.length) % 64)) + '\n';
  const head = Buffer.alloc(10 + h.length);
  head.write('\x93NUMPY\x01\x00', 0, 'latin1');
  head.writeUInt16LE(h.length, 8);
  head.write(h, 10, 'latin1');
  fs.writeFileSync(file, Buffer.concat([head, Buffer.from(data.buffer, data.byteOffset, data.byteLength)]));
}
function readNpy(file) {
  const b = fs.readFileSync(file), start = b.byteOffset + 10 + b.readUInt16LE(8);
  return new Float32Array(b.buffer.slice(start, b.byteOffset + b.length));
}

// The largest difference over the largest magnitude; NaN where both are NaN, and infinities of one sign, are no difference.
function difference(found, expected) {
  if (found.length !== expected.length) return Infinity;
  let worst = 0, largest = 0;
  for (let i = 0; i < expected.length; ++i) {
    if (Number.isFinite(expected[i])) largest = Math.max(largest, Math.abs(expected[i]));
    if (!Object.is(found[i], expected[i])) worst = Math.max(worst, Math.abs(found[i] - expected[i]));
  }
  if (Number.isNaN(worst)) return Infinity;
  return worst === 0 ? 0 : worst / largest;
}

async function compare(session, file, batch) {
  const name = session.inputNames[0], meta = session.inputMetadata?.[0]?.shape ?? [];
  const sample = option.shape ? option.shape.split(',').map(Number) : meta.slice(1), fixed = meta[0] === 1;
  const shape = [batch, ...sample], each = sample.reduce((a, b) => a * b, 1), x = new Float32Array(batch * each);
  let seed = 1;
  for (let i = 0; i < x.length; ++i) x[i] = (seed = (seed * 1103515245 + 12345) & 0x7fffffff) / 0x80000000;
  writeNpy(path.join(work, 'x.npy'), x, shape);
  const isa = option.isa ? ['--isa', option.isa] : [];
  execFileSync(tool, ['run', file, '--input', path.join(work, 'x.npy'), '--output-dir', work, ...isa], { stdio: ['ignore', 'ignore', 'pipe'] });
  const expected = {};
  for (let i = 0; i < (fixed ? batch : 1); ++i) {
    const part = fixed ? x.slice(i * each, (i + 1) * each) : x;
    const out = await session.run({ [name]: new ort.Tensor('float32', part, fixed ? [1, ...sample] : shape) });
    for (const [k, v] of Object.entries(out)) (expected[k] ??= []).push(v.data);
  }
  let worst = 0, where = '';
  for (const [k, parts] of Object.entries(expected)) {
    const all = new Float32Array(parts.reduce((n, p) => n + p.length, 0));
    parts.reduce((n, p) => (all.set(p, n), n + p.length), 0);
    const d = difference(readNpy(path.join(work, `${k.replace(/[/\\:]/g, '_')}.npy`)), all);
    if (d > worst) [worst, where] = [d, k];
  }
  return [worst, where];
}

let failed = 0, compared = 0;
for (const file of files) {
  let session = null;
  try {
    session = await ort.InferenceSession.create(file, { logSeverityLevel: 3 });
  } catch (e) {
    console.log(`${path.basename(file)}: ONNX Runtime refuses it: ${e.message}`);
    ++failed;
    continue;
  }
  for (const batch of option.batches.split(',').map(Number)) {
    let line = '', good = false;
    try {
      const [worst, where] = await compare(session, file, batch);
      good = worst <= Number(option.tolerance);
      line = worst.toExponential(2) + (good ? '' : ` at ${where}`);
    } catch (e) {
      line = e.stderr ? e.stderr.toString().trim() : e.message;
    }
    ++compared;
    if (!good) ++failed;
    if (!good || !option['failed-only']) console.log(`${path.basename(file)} batch ${batch}: ${line}`);
  }
}
console.log(`${compared} compared, ${failed} failed`);
fs.rmSync(work, { recursive: true });
process.exit(failed ? 1 : 0);
