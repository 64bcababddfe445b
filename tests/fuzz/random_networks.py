"""Writes random ONNX networks for bench/compare_onnxruntime.mjs: convolutions, their followers, residual and squeezed
branches, attention, norms and movements in the order that a seed draws, to find what the passes get wrong.

    python3 tests/fuzz/random_networks.py OUTPUT COUNT [--first SEED] [--bytes]
    node bench/compare_onnxruntime.mjs TOOL OUTPUT/*.onnx --failed-only 1 [--tolerance 0.1]

With --bytes, networks that somebody quantized. There a sum that lies between two steps may be rounded either way, and
what follows makes more of it: hence the tolerance.
"""
import argparse
import pathlib
import random
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BATCH = 3  # shapes are inferred at this batch


class Network:
    """Grows node by node; a step that shape inference refuses is undone."""

    def __init__(self, seed, quantized=False):
        self.random = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.nodes, self.initializers, self.shapes, self.types = [], [], {}, {}
        self.opset = self.random.choice([11, 13, 14, 17])
        self.live = []  # every tensor so far
        self.quantized = quantized
        self.steps = {}  # of what came from bytes

    def constant(self, values):
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def integers(self, *values):
        return self.constant(np.array(values, np.int64))

    def weights(self, *shape, fan=None, scale=1.0):
        assert np.prod(shape) < 1_000_000, shape
        fan = fan or max(1, int(np.prod(shape[1:])))
        return self.constant((self.numbers.standard_normal(shape) * scale / np.sqrt(fan)).astype(np.float32))

    def positive(self, *shape):
        return self.constant(self.numbers.uniform(0.5, 1.5, shape).astype(np.float32))

    def add(self, op, inputs, outputs=1, **attributes):
        names = [f"t{len(self.shapes) + i}" for i in range(outputs)]
        node = helper.make_node(op, inputs, names, name=f"{op}_{len(self.nodes)}", **attributes)
        used = [t for t in self.initializers if t.name in inputs]
        infos = [
            helper.make_tensor_value_info(n, self.types.get(n, TensorProto.FLOAT), self.shapes[n])
            for n in inputs
            if n in self.shapes
        ]
        graph = helper.make_graph([node], "one", infos, [helper.make_empty_tensor_value_info(n) for n in names], used)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        for out in inferred.graph.output:
            shape = [d.dim_value for d in out.type.tensor_type.shape.dim]
            assert shape and all(shape), (op, shape)
            assert np.prod(shape) < 400_000, (op, shape)
            self.shapes[out.name] = shape
            self.types[out.name] = out.type.tensor_type.elem_type
        if "kernel_shape" in attributes and op != "ConvTranspose" and "auto_pad" not in attributes:
            spatial = self.shapes[inputs[0]][2:]
            pads = attributes.get("pads", [0] * 2 * len(spatial))
            for i, size in enumerate(spatial):  # shape inference rounds towards zero and lets such windows pass
                extent = (attributes["kernel_shape"][i] - 1) * attributes.get("dilations", [1] * len(spatial))[i] + 1
                assert size + pads[i] + pads[i + len(spatial)] >= extent, op
        elif attributes.get("auto_pad") == "VALID":
            assert all(s >= k for s, k in zip(self.shapes[inputs[0]][2:], attributes["kernel_shape"])), op
        self.nodes.append(node)
        self.live += [
            n for n in names if self.types[n] == TensorProto.FLOAT and not all(i.startswith("c") for i in inputs)
        ]
        return names[0] if outputs == 1 else names

    # --- followers

    def activation(self, x):
        r, shape = self.random, self.shapes[x]
        kind = r.choice(
            ["Relu"] * 4
            + [
                "Clip",
                "Clip",
                "LeakyRelu",
                "PRelu",
                "Sigmoid",
                "HardSigmoid",
                "silu",
                "Elu",
                "Tanh",
                "gelu",
                "tanh gelu",
                "hard swish",
                "HardSwish",
                "Softplus",
                "Selu",
                "Abs",
                "Neg",
                "square",
                "Mish",
            ]
        )
        if kind == "Clip":
            low, high = r.choice([(0.0, 6.0), (-1.0, 1.0), (0.0, None), (None, 0.7), (-0.5, 0.5)])
            bounds = ["" if v is None else self.constant(np.float32(v)) for v in (low, high)]
            return self.add("Clip", [x] + (bounds if bounds[1] else bounds[:1]))
        if kind == "LeakyRelu":
            return self.add("LeakyRelu", [x], alpha=r.choice([0.01, 0.2, 1.5]))
        if kind == "PRelu":
            slope = self.positive(shape[1], *[1] * (len(shape) - 2)) if r.random() < 0.7 else self.positive(1)
            if len(shape) == 2:
                slope = self.positive(shape[1])
            return self.add("PRelu", [x, slope])
        if kind == "silu":
            s = self.add("Sigmoid", [x])
            return self.add("Mul", r.sample([x, s], 2))
        if kind == "hard swish":
            s = self.add("HardSigmoid", [x], alpha=1 / 6, beta=0.5)
            return self.add("Mul", r.sample([x, s], 2))
        if kind == "HardSwish":
            if self.opset < 14:
                return self.add("Relu", [x])
            return self.add("HardSwish", [x])
        if kind == "gelu":
            e = self.add("Erf", [self.add("Div", [x, self.constant(np.float32(np.sqrt(2)))])])
            e = self.add("Add", [e, self.constant(np.float32(1))])
            if r.random() < 0.5:
                return self.add("Mul", [self.add("Mul", [x, e]), self.constant(np.float32(0.5))])
            return self.add("Mul", [self.add("Mul", [x, self.constant(np.float32(0.5))]), e])
        if kind == "tanh gelu":
            cube = self.add("Pow", [x, self.constant(np.float32(3))])
            t = self.add("Add", [x, self.add("Mul", [cube, self.constant(np.float32(0.044715))])])
            t = self.add("Tanh", [self.add("Mul", [t, self.constant(np.float32(0.7978845608))])])
            t = self.add("Add", [t, self.constant(np.float32(1))])
            return self.add("Mul", [self.add("Mul", [x, self.constant(np.float32(0.5))]), t])
        if kind == "square":
            return self.add("Tanh", [self.add("Mul", [x, x])])
        if kind == "Mish":
            return self.add("Mul", [x, self.add("Tanh", [self.add("Softplus", [x])])])
        if kind == "Elu":
            return self.add("Elu", [x], alpha=r.choice([1.0, 0.5]))
        return self.add(kind, [x])

    def affine(self, x):
        r, shape = self.random, self.shapes[x]
        rank = len(shape)
        channel = [shape[1]] + [1] * (rank - 2) if rank > 2 else [shape[1]]
        if r.random() < 0.3:
            channel = [1] + channel
        if r.random() < 0.15:
            channel = [1] * r.randint(0, rank)
        c = self.constant(self.numbers.uniform(0.5, 1.5, channel).astype(np.float32))
        op = r.choice(["Add", "Mul", "Sub", "Div"])
        operands = [x, c]
        if r.random() < 0.4 and op != "Div":
            operands.reverse()
        return self.add(op, operands)

    def same(self, x):
        """An earlier tensor of the same shape, or x."""
        others = [n for n in self.live if self.shapes[n] == self.shapes[x]]
        return self.random.choice(others)

    def join(self, x):
        r = self.random
        other = self.same(x)
        op = r.choice(["Add"] * 5 + ["Mul", "Sub", "Max", "Min", "Sum"])
        operands = r.sample([x, other], 2) if other != x else [x, other]
        return self.add(op, operands)

    def follow(self, x):
        r = self.random
        for _ in range(r.choice([0, 1, 1, 2, 2, 3])):
            x = r.choice([self.activation, self.activation, self.affine, self.join, self.norm])(x)
        return x

    def norm(self, x):
        shape = self.shapes[x]
        c = shape[1]
        if len(shape) == 4 and self.random.random() < 0.15:
            return self.add("InstanceNormalization", [x, self.positive(c), self.weights(c, fan=4)])
        mean, variance = self.weights(c, fan=4), self.positive(c)
        return self.add(
            "BatchNormalization",
            [x, self.positive(c), self.weights(c, fan=4), mean, variance],
            epsilon=self.random.choice([1e-5, 1e-3]),
        )

    # --- on maps [N, C, H, W]

    def convolution(self, x):
        r = self.random
        n, c, h, w = self.shapes[x]
        kind = r.choice(["3x3"] * 4 + ["1x1"] * 3 + ["depthwise"] * 2 + ["any", "any", "grouped", "transposed", "same"])
        out = r.choice([1, 3, 8, 16, 24, 32, 40, 64, 96, c, c])
        attributes, group = {}, 1
        kernel = [3, 3]
        if kind == "1x1":
            kernel = [1, 1]
            if r.random() < 0.2:
                attributes["strides"] = [r.choice([1, 2]), 2]
        elif kind in ("depthwise", "grouped"):
            group = c if kind == "depthwise" else r.choice([g for g in (1, 2, 3, 4, 8) if c % g == 0])
            out = group * r.choice([1, 1, 1, 2]) if kind == "depthwise" else group * r.choice([1, 4, 8, 16])
            kernel = r.choice([[3, 3], [5, 5], [7, 7], [3, 5], [1, 3]])
        elif kind == "any":
            kernel = [r.randint(1, 7), r.randint(1, 7)]
        if kind == "transposed":
            kernel = [r.randint(1, 4), r.randint(1, 4)]
            strides = [r.choice([1, 2]), r.choice([1, 2])]
            weights = self.weights(c, out, *kernel, fan=c * kernel[0] * kernel[1])
            inputs = [x, weights] + ([self.weights(out, fan=4)] if r.random() < 0.5 else [])
            return self.add("ConvTranspose", inputs, kernel_shape=kernel, strides=strides)
        if kind != "1x1":
            if r.random() < 0.3:
                attributes["strides"] = r.choice([[2, 2], [1, 2], [2, 1], [3, 3]])
            if r.random() < 0.15:
                attributes["dilations"] = r.choice([[2, 2], [1, 2], [3, 1]])
            if kind == "same":
                attributes["auto_pad"] = r.choice(["SAME_UPPER", "SAME_LOWER", "VALID"])
                attributes.pop("dilations", None)
            elif r.random() < 0.8:
                attributes["pads"] = (
                    [kernel[0] // 2, kernel[1] // 2] * 2
                    if r.random() < 0.7
                    else [r.randint(0, k // 2) for k in kernel * 2]
                )
        inputs = [x, self.weights(out, c // group, *kernel)] + ([self.weights(out, fan=4)] if r.random() < 0.6 else [])
        return self.add("Conv", inputs, kernel_shape=kernel, group=group, **attributes)

    def pool(self, x):
        r = self.random
        kernel = r.choice([[2, 2], [3, 3], [3, 2], [1, 2], [5, 5]])
        attributes = {"kernel_shape": kernel, "strides": r.choice([[1, 1], [2, 2], [2, 1], kernel])}
        if r.random() < 0.6:
            attributes["pads"] = [r.randint(0, k // 2) for k in kernel * 2]
        op = r.choice(["MaxPool", "AveragePool"])
        if op == "AveragePool":
            attributes["count_include_pad"] = r.choice([0, 1])
        if r.random() < 0.15 and op == "MaxPool":
            attributes["ceil_mode"] = 1
        return self.add(op, [x], **attributes)

    def squeeze_excite(self, x):
        r = self.random
        n, c, h, w = self.shapes[x]
        mid = r.choice([4, 8, 16])
        s = self.add("GlobalAveragePool", [x]) if r.random() < 0.6 else self.reduce_mean(x, [2, 3], 1)
        s = self.add("Conv", [s, self.weights(mid, c, 1, 1), self.weights(mid, fan=4)])
        s = self.activation(s)
        s = self.add("Conv", [s, self.weights(c, mid, 1, 1), self.weights(c, fan=4)])
        s = self.add(r.choice(["Sigmoid", "HardSigmoid"]), [s])
        return self.add("Mul", r.sample([x, s], 2))

    def reduce_mean(self, x, axes, keep):
        return self.add("ReduceMean", [x], axes=axes, keepdims=keep)

    def concat(self, x):
        r, shape = self.random, self.shapes[x]
        axis = 1
        others = [
            n
            for n in self.live
            if len(self.shapes[n]) == len(shape)
            and all(a == b for i, (a, b) in enumerate(zip(self.shapes[n], shape)) if i != axis)
        ]
        parts = [x] + [r.choice(others) for _ in range(r.randint(1, 2))]
        r.shuffle(parts)
        return self.add("Concat", parts, axis=r.choice([axis, axis - len(shape)]))

    def split(self, x):
        r, shape = self.random, self.shapes[x]
        c = shape[1]
        if c < 2:
            return x
        if r.random() < 0.5:
            a = r.randint(1, c - 1)
            if self.opset >= 13:
                parts = self.add("Split", [x, self.integers(a, c - a)], 2, axis=1)
            else:
                parts = self.add("Split", [x], 2, axis=1, split=[a, c - a])
            if r.random() < 0.5:
                left = self.follow(parts[0])
                if self.shapes[left][2:] == shape[2:]:
                    return self.add("Concat", r.sample([left, parts[1]], 2), axis=1)
            return r.choice(parts)
        begin = r.randint(0, c - 1)
        step = r.choice([1, 1, 2])
        return self.add(
            "Slice",
            [x, self.integers(begin), self.integers(r.choice([c, 2**31 - 1])), self.integers(1), self.integers(step)],
        )

    def spatial_slice(self, x):
        shape = self.shapes[x]
        if min(shape[2:]) < 3:
            return x
        return self.add(
            "Slice",
            [
                x,
                self.integers(0, 1),
                self.integers(-1, shape[3]),
                self.integers(2, 3),
                self.integers(1, self.random.choice([1, 2])),
            ],
        )

    def shuffle(self, x):
        r = self.random
        n, c, h, w = self.shapes[x]
        groups = [g for g in (2, 3, 4) if c % g == 0]
        if not groups:
            return x
        g = r.choice(groups)
        y = self.add("Reshape", [x, self.integers(0, g, c // g, h, w)])
        y = self.add("Transpose", [y], perm=[0, 2, 1, 3, 4])
        return self.add("Reshape", [y, self.integers(r.choice([0, -1]), c, h, w)])

    def resize(self, x):
        r = self.random
        if np.prod(self.shapes[x]) > 50_000:
            return x
        scales = self.constant(np.array([1, 1, 2, r.choice([1, 2])], np.float32))
        return self.add(
            "Resize",
            [x, self.constant(np.array([], np.float32)), scales],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    def pad(self, x):
        r = self.random
        pads = [0, 0, r.randint(0, 2), r.randint(0, 2), 0, r.choice([0, 0, 3]), r.randint(0, 2), r.randint(0, 2)]
        mode = r.choice(["constant", "constant", "reflect", "edge"])
        if mode == "reflect" and min(self.shapes[x][2:]) < 3:
            mode = "constant"
        if mode != "constant":
            pads[5] = 0
        inputs = [x, self.integers(*pads)]
        if mode == "constant" and r.random() < 0.5:
            inputs.append(self.constant(np.float32(r.choice([0, 0.5]))))
        return self.add("Pad", inputs, mode=mode)

    def block(self, x):
        """A residual block, or an inverted one."""
        r = self.random
        n, c, h, w = self.shapes[x]
        mid = r.choice([c, 2 * c, 16, 32])
        y = x
        if r.random() < 0.5:
            y = self.add("Conv", [y, self.weights(mid, c, 1, 1), self.weights(mid, fan=4)])
            y = self.activation(y)
            y = self.add(
                "Conv", [y, self.weights(mid, 1, 3, 3), self.weights(mid, fan=4)], group=mid, pads=[1, 1, 1, 1]
            )
            y = self.activation(y)
            y = self.add("Conv", [y, self.weights(c, mid, 1, 1), self.weights(c, fan=4)])
        else:
            y = self.add("Conv", [y, self.weights(mid, c, 3, 3)], pads=[1, 1, 1, 1])
            y = self.norm(y) if r.random() < 0.7 else y
            y = self.activation(y)
            y = self.add("Conv", [y, self.weights(c, mid, 3, 3)], pads=[1, 1, 1, 1])
            y = self.norm(y) if r.random() < 0.7 else y
        if r.random() < 0.3:
            y = self.squeeze_excite(y)
        y = self.add("Add", r.sample([x, y], 2))
        return self.activation(y) if r.random() < 0.6 else y

    def channels_last(self, x):
        """A stretch in NHWC, as exporters from TensorFlow write it."""
        r = self.random
        y = self.add("Transpose", [x], perm=[0, 2, 3, 1])
        c = self.shapes[y][3]
        kind = r.randint(0, 3)
        if kind == 0:
            y = self.add("Add", [y, self.weights(c, fan=4)])
        elif kind == 1:
            out = r.choice([c, 8, 32])
            y = self.add("MatMul", [y, self.weights(c, out, fan=c)])
            if r.random() < 0.7:
                y = self.add("Add", [y, self.weights(out, fan=4)])
        elif kind == 2:
            y = self.layer_norm(y)
        if r.random() < 0.5:
            y = self.activation_any(y)
        return self.add("Transpose", [y], perm=[0, 3, 1, 2])

    def activation_any(self, y):
        return self.add(
            self.random.choice(["Relu", "Sigmoid", "Tanh", "Exp"] if self.random.random() < 0.3 else ["Relu"]), [y]
        )

    def on_map(self, x):
        r = self.random
        step = r.choice(
            [self.convolution] * 6
            + [self.block] * 4
            + [
                self.pool,
                self.pool,
                self.squeeze_excite,
                self.concat,
                self.concat,
                self.split,
                self.shuffle,
                self.resize,
                self.pad,
                self.channels_last,
                self.spatial_slice,
                self.follow,
                self.norm,
            ]
        )
        return step(x)

    # --- on sequences [N, T, D]

    def layer_norm(self, x):
        r = self.random
        d = self.shapes[x][-1]
        if self.opset >= 17 and r.random() < 0.5:
            return self.add("LayerNormalization", [x, self.positive(d), self.weights(d, fan=4)], axis=-1, epsilon=1e-5)
        mean = self.reduce_mean(x, [-1], 1)
        centred = self.add("Sub", [x, mean])
        square = (
            self.add("Pow", [centred, self.constant(np.float32(2))])
            if r.random() < 0.5
            else self.add("Mul", [centred, centred])
        )
        variance = self.add("Add", [self.reduce_mean(square, [-1], 1), self.constant(np.float32(1e-5))])
        y = self.add("Div", [centred, self.add("Sqrt", [variance])])
        y = self.add("Mul", r.sample([y, self.positive(d)], 2))
        return self.add("Add", [y, self.weights(d, fan=4)])

    def linear(self, x, out):
        r = self.random
        d = self.shapes[x][-1]
        y = self.add("MatMul", [x, self.weights(d, out, fan=d)])
        return self.add("Add", r.sample([y, self.weights(out, fan=4)], 2)) if r.random() < 0.8 else y

    def attention(self, x):
        r = self.random
        n, t, d = self.shapes[x]
        heads = r.choice([h for h in (1, 2, 4) if d % h == 0])
        form = r.choice(["four", "joint", "none"])
        if form == "joint":
            joint = self.add("Reshape", [self.linear(x, 3 * d), self.integers(0, t, 3, heads, d // heads)])
            joint = self.add("Transpose", [joint], perm=[2, 0, 3, 1, 4])
            q, k, v = [self.add("Gather", [joint, self.constant(np.int64(i))], axis=0) for i in range(3)]
        else:
            q, k, v = [self.linear(x, d) for _ in range(3)]
            if form == "four":
                split = self.integers(0, t, heads, d // heads)
                q, k, v = [
                    self.add("Transpose", [self.add("Reshape", [p, split])], perm=[0, 2, 1, 3]) for p in (q, k, v)
                ]
        rank = len(self.shapes[q])
        swap = list(range(rank - 2)) + [rank - 1, rank - 2]
        factor = self.constant(np.float32(1 / np.sqrt(d // heads)))
        where = r.choice(["scores", "q", "k", "divide", "nothing"])
        if where == "q":
            q = self.add("Mul", [q, factor])
        k = self.add("Transpose", [k], perm=swap)
        if where == "k":
            k = self.add("Mul", [k, factor])
        scores = self.add("MatMul", [q, k])
        if where == "scores":
            scores = self.add("Mul", [scores, factor])
        if where == "divide":
            scores = self.add("Div", [scores, self.constant(np.float32(np.sqrt(d // heads)))])
        if r.random() < 0.4:
            mask = np.where(self.numbers.random((t, t)) < 0.2, np.float32(-1e4), np.float32(0))
            if rank == 4 and r.random() < 0.5:
                mask = mask[None, None, :1]
            scores = self.add("Add", r.sample([scores, self.constant(mask.astype(np.float32))], 2))
        y = self.add("MatMul", [self.add("Softmax", [scores], axis=-1 if self.opset >= 13 else rank - 1), v])
        if rank == 4:
            y = self.add("Transpose", [y], perm=[0, 2, 1, 3])
            y = self.add("Reshape", [y, self.integers(0, t, d)])
        return y

    def encoder(self, x):
        r = self.random
        d = self.shapes[x][2]
        before = r.random() < 0.5
        y = self.layer_norm(x) if before else x
        x = self.add("Add", [x, self.linear(self.attention(y), d)])
        y = self.layer_norm(x)
        x = x if before else y
        y = self.linear(self.activation(self.linear(y, r.choice([d, 2 * d]))), d)
        return self.add("Add", r.sample([x, y], 2))

    def on_sequence(self, x):
        r = self.random
        n, t, d = self.shapes[x]
        kind = r.choice(
            ["encoder"] * 3
            + ["linear"] * 2
            + ["norm", "attention", "activation", "join", "swap", "slice", "conv", "recurrent", "concat", "softmax"]
        )
        if kind == "linear":
            return self.linear(x, r.choice([d, 16, 33, 64]))
        if kind == "norm":
            return self.layer_norm(x)
        if kind == "swap":
            return self.add("Transpose", [x], perm=[0, 2, 1])
        if kind == "slice":
            if t < 2:
                return x
            return self.add("Slice", [x, self.integers(1), self.integers(t), self.integers(1)])
        if kind == "conv":
            k = r.choice([1, 3, 5])
            out = r.choice([8, 16, t])
            return self.add(
                "Conv",
                [x, self.weights(out, t, k), self.weights(out, fan=4)],
                kernel_shape=[k],
                pads=[k // 2, k // 2],
                strides=[r.choice([1, 1, 2])],
            )
        if kind == "recurrent":
            op, gates = r.choice([("GRU", 3), ("LSTM", 4), ("RNN", 1)])
            hidden = r.choice([8, 16, 20])
            directions = r.choice([1, 1, 2])
            y = self.add("Transpose", [x], perm=[1, 0, 2])
            inputs = [
                y,
                self.weights(directions, gates * hidden, d, fan=d),
                self.weights(directions, gates * hidden, hidden, fan=hidden),
            ]
            if r.random() < 0.7:
                inputs.append(self.weights(directions, 2 * gates * hidden, fan=4))
            attributes = {
                "hidden_size": hidden,
                "direction": "bidirectional" if directions == 2 else r.choice(["forward", "reverse"]),
            }
            if op == "GRU":
                attributes["linear_before_reset"] = r.choice([0, 1])
            y = self.add(op, inputs, **attributes)  # [T, directions, N, hidden]
            y = self.add("Transpose", [y], perm=[2, 0, 1, 3])
            return self.add("Reshape", [y, self.integers(0, t, directions * hidden)])
        if kind == "softmax":
            return self.add("Softmax", [x], axis=r.choice([1, 2] if self.opset >= 13 else [2]))
        return {
            "encoder": self.encoder,
            "attention": self.attention,
            "activation": self.activation,
            "join": self.join,
            "concat": self.concat,
        }[kind](x)

    # --- on rows [N, D]

    def on_row(self, x):
        r = self.random
        n, d = self.shapes[x]
        kind = r.choice(["gemm"] * 3 + ["matmul", "follow", "join", "concat", "split", "softmax", "norm", "gate"])
        out = r.choice([1, 5, 10, 16, 32, 50, 64, d])
        if kind == "gemm":
            b = r.random() < 0.5
            inputs = [x, self.weights(*((out, d) if b else (d, out)), fan=d)]
            if r.random() < 0.8:
                inputs.append(self.weights(*r.choice([(out,), (1, out), (1,)]), fan=4))
            return self.add(
                "Gemm", inputs, transB=int(b), alpha=r.choice([1.0, 1.0, 0.5]), beta=r.choice([1.0, 1.0, 2.0])
            )
        if kind == "matmul":
            return self.linear(x, out)
        if kind == "softmax":
            return self.add(r.choice(["Softmax", "LogSoftmax"]), [x], axis=1)
        if kind == "norm":
            return self.layer_norm(x) if r.random() < 0.5 else self.norm(x)
        if kind == "gate":
            return self.add("Mul", [x, self.add("Sigmoid", [self.linear(x, d)])])
        return {"follow": self.follow, "join": self.join, "concat": self.concat, "split": self.split}[kind](x)

    # --- bytes, as exporters write them: QuantizeLinear and DequantizeLinear around float operators

    def bytes_of(self, x, signed=None):
        """x as it is after a turn through bytes."""
        r = self.random
        signed = r.random() < 0.4 if signed is None else signed
        step = np.float32(r.choice([0.02, 0.03, 0.05]))
        scale = self.constant(step)
        zero = self.constant(
            np.array(r.choice([0, 0, 5, -20]), np.int8) if signed else np.array(r.choice([0, 128, 100]), np.uint8)
        )
        y = self.add("DequantizeLinear", [self.add("QuantizeLinear", [x, scale, zero]), scale, zero])
        self.steps[y] = step
        return y

    def byte_weights(self, *shape, axis=0):
        r = self.random
        values = self.numbers.integers(-127, 128, shape).astype(np.int8)
        fan = int(np.prod(shape)) // shape[axis]
        channels = shape[axis]
        if self.opset >= 13 and r.random() < 0.7:
            scale = self.numbers.uniform(0.5, 1.5, channels).astype(np.float32) / np.float32(70 * np.sqrt(fan))
            w = self.add(
                "DequantizeLinear",
                [self.constant(values), self.constant(scale), self.constant(np.zeros(channels, np.int8))],
                axis=axis,
            )
        else:
            scale = np.float32(1 / (70 * np.sqrt(fan)))
            w = self.add("DequantizeLinear", [self.constant(values), self.constant(scale), self.constant(np.int8(0))])
        self.steps[w] = scale
        return w

    def byte_bias(self, x, w, channels):
        """None, in float32, or in int32 at the step of the products."""
        kind = self.random.choice(["none", "float", "int", "int"])
        if kind == "none":
            return []
        if kind == "float" or x not in self.steps:
            return [self.weights(channels, fan=4)]
        scale = self.constant((self.steps[x] * self.steps[w]).astype(np.float32))
        values = np.round(self.numbers.standard_normal(channels) * 0.5 / (self.steps[x] * self.steps[w])).astype(
            np.int32
        )
        zero = np.zeros(np.shape(self.steps[w]), np.int32)
        return [
            self.add(
                "DequantizeLinear",
                [self.constant(values), scale, self.constant(zero)],
                **({"axis": 0} if zero.ndim else {}),
            )
        ]

    def byte_step(self, x):
        r, shape = self.random, self.shapes[x]
        if len(shape) == 2:
            out = r.choice([5, 10, 16, 33, 64])
            if r.random() < 0.5:
                w = self.byte_weights(out, shape[1])
                y = self.add("Gemm", [x, w] + self.byte_bias(x, w, out), transB=1)
            else:
                y = self.add("MatMul", [x, self.byte_weights(shape[1], out, axis=1)])
            return self.bytes_of(self.add("Relu", [y]) if r.random() < 0.3 else y)
        n, c, h, w = shape
        kind = r.choice(["conv"] * 4 + ["depthwise", "add", "add", "concat", "pool", "mean", "activation", "end"])
        if kind in ("conv", "depthwise"):
            k = r.choice([1, 3, 3, 5]) if kind == "conv" else r.choice([3, 5])
            out, group = (r.choice([8, 16, 24, 32, 64]), 1) if kind == "conv" else (c, c)
            weights = self.byte_weights(out, c // group, k, k)
            inputs = [x, weights] + self.byte_bias(x, weights, out)
            y = self.add(
                "Conv", inputs, kernel_shape=[k, k], group=group, pads=[k // 2] * 4, strides=[r.choice([1, 1, 2])] * 2
            )
            if r.random() < 0.6:
                y = (
                    self.add("Relu", [y])
                    if r.random() < 0.7
                    else self.add("Clip", [y, self.constant(np.float32(0)), self.constant(np.float32(6))])
                )
            return self.bytes_of(y)
        if kind == "add":
            y = self.add("Add", [x, self.same(x)])
            return self.bytes_of(self.add("Relu", [y]) if r.random() < 0.5 else y)
        if kind == "concat":
            return self.bytes_of(self.concat(x))
        if kind == "pool":
            return self.bytes_of(self.pool(x))
        if kind == "mean":
            return self.bytes_of(self.add("GlobalAveragePool", [x]))
        if kind == "activation":
            return self.bytes_of(
                self.add(
                    r.choice(
                        ["Relu", "Sigmoid", "LeakyRelu", "HardSwish"] if self.opset >= 14 else ["Relu", "Sigmoid"]
                    ),
                    [x],
                )
            )
        return self.bytes_of(self.add("Flatten", [x]))

    # --- the whole

    def turn(self, x):
        """From one rank to the next: maps to rows or tokens, tokens to rows."""
        r, shape = self.random, self.shapes[x]
        if len(shape) == 3:
            if r.random() < 0.5:
                return self.reduce_mean(x, [1], 0)
            return self.add("Gather", [x, self.constant(np.int64(0))], axis=1)
        end = r.choice(["flatten", "mean", "tokens", "pool"])
        if end == "flatten":
            return self.add("Flatten", [x])
        if end == "mean":
            return self.reduce_mean(x, [2, 3], 0)
        if end == "pool":
            return self.add("Flatten", [self.add("GlobalAveragePool", [x])])
        y = self.add("Reshape", [x, self.integers(0, shape[1], shape[2] * shape[3])])
        return self.add("Transpose", [y], perm=[0, 2, 1])

    def step(self, x, done):
        """One step more on x; `done` is the part of the network that is there."""
        rank = len(self.shapes[x])
        if self.quantized:
            return self.byte_step(x)
        if (rank == 4 and done > 0.5 or rank == 3 and done > 0.7) and self.random.random() < 0.3:
            return self.turn(x)
        return {4: self.on_map, 3: self.on_sequence, 2: self.on_row}[rank](x)

    def fits(self, x):
        return self.shapes[x][0] == BATCH and len(self.shapes[x]) in (2, 3, 4)

    def build(self):
        r = self.random
        start = r.choice(["map", "map", "map", "row"] + ["sequence"] * (not self.quantized))
        shape = {
            "map": [r.choice([1, 3, 8, 16]), r.choice([6, 8, 13, 16, 28]), r.choice([6, 8, 15, 16, 28])],
            "sequence": [r.choice([1, 5, 16, 21]), r.choice([8, 12, 32, 64])],
            "row": [r.choice([1, 7, 32, 100])],
        }[start]
        self.shapes["x"] = [BATCH] + shape
        self.live.append("x")
        x, length = "x", r.randint(3, 14)
        if self.quantized:
            x, length = self.bytes_of("x"), 3 * length
        for _ in range(60):
            if len(self.nodes) >= length:
                break
            kept = len(self.nodes), len(self.live), len(self.initializers), dict(self.shapes)
            start = r.choice([n for n in self.live if self.fits(n)]) if r.random() < 0.12 else x
            try:
                after = self.step(start, len(self.nodes) / length)
                assert self.fits(after)
                x = after
            except (AssertionError, onnx.shape_inference.InferenceError):
                nodes, live, initializers, self.shapes = kept
                del self.nodes[nodes:], self.live[live:], self.initializers[initializers:]
        used = {i for node in self.nodes for i in node.input}
        able = [n for n in self.live if n != "x" and self.shapes[n][0] == BATCH]
        outputs, inner = [n for n in able if n not in used], [n for n in able if n in used]
        outputs += r.sample(inner, min(len(inner), r.choice([0, 0, 1, 2])))
        used |= set(outputs)

        def info(n):
            return helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N"] + self.shapes[n][1:])

        initializers = [t for t in self.initializers if t.name in used]
        graph = helper.make_graph(self.nodes, "random", [info("x")], [info(n) for n in outputs], initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        onnx.checker.check_model(model)
        return model


def main():
    parser = argparse.ArgumentParser(description="Writes random ONNX networks.")
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("count", type=int)
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--bytes", action="store_true", help="quantized ones")
    o = parser.parse_args()
    o.output.mkdir(parents=True, exist_ok=True)
    for seed in range(o.first, o.first + o.count):
        onnx.save(Network(seed, o.bytes).build(), str(o.output / f"random_{seed:05}.onnx"))


if __name__ == "__main__":
    main()
