// Holds the tool's outputs against ONNX Runtime's, batch 1 and 7: the largest difference over the largest magnitude.
//   npm install --ignore-scripts onnxruntime-node        (in a folder of its own, then there:)
//   node .../bench/compare_onnxruntime.mjs .../offramp MODEL.onnx... [--batches 1,7] [--shape C,H,W]
// A file that fixes its batch at 1 is given to ONNX Runtime sample by sample. Exit code 1 where a difference is above 1e-4.
import { execFileSync } from 'node:child_process';
import { createRequire } from 'node:module';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
const ort = createRequire(path.join(process.cwd(), 'x.js'))('onnxruntime-node');

const files = [], option = { batches: '1,7' };
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

let failed = false;
for (const file of files) {
  const session = await ort.InferenceSession.create(file), name = session.inputNames[0];
  const meta = session.inputMetadata?.[0]?.shape ?? [];
  const sample = option.shape ? option.shape.split(',').map(Number) : meta.slice(1);
  const fixed = meta[0] === 1;
  for (const batch of option.batches.split(',').map(Number)) {
    const shape = [batch, ...sample], each = sample.reduce((a, b) => a * b, 1), x = new Float32Array(batch * each);
    let seed = 1;
    for (let i = 0; i < x.length; ++i) x[i] = (seed = (seed * 1103515245 + 12345) & 0x7fffffff) / 0x80000000;
    writeNpy(path.join(work, 'x.npy'), x, shape);
    execFileSync(tool, ['run', file, '--input', path.join(work, 'x.npy'), '--output-dir', work], { stdio: ['ignore', 'ignore', 'inherit'] });
    const expected = {};
    for (let i = 0; i < (fixed ? batch : 1); ++i) {
      const part = fixed ? x.slice(i * each, (i + 1) * each) : x;
      const out = await session.run({ [name]: new ort.Tensor('float32', part, fixed ? [1, ...sample] : shape) });
      for (const [k, v] of Object.entries(out)) (expected[k] ??= []).push(...v.data);
    }
    let worst = 0;
    for (const [k, v] of Object.entries(expected)) {
      const found = readNpy(path.join(work, `${k.replace(/[/\\:]/g, '_')}.npy`));
      let difference = found.length === v.length ? 0 : Infinity, largest = 0;
      for (let i = 0; i < v.length; ++i) {
        difference = Math.max(difference, Math.abs(found[i] - v[i]));
        largest = Math.max(largest, Math.abs(v[i]));
      }
      worst = Math.max(worst, difference / largest);
    }
    failed ||= !(worst <= 1e-4);
    console.log(`${path.basename(file)} batch ${batch}: ${worst.toExponential(2)}`);
  }
}
fs.rmSync(work, { recursive: true });
process.exit(failed ? 1 : 0);
