#!/usr/bin/python3
"""Trains the residual networks of README and of the tests on Fashion-MNIST and writes them as ONNX.

    apt-get install -y python3-torch python3-onnx dataset-fashion-mnist
    /usr/bin/python3 examples/fashion/train.py fashion_resnet18.onnx --plain --images 48000 --epochs 18
    /usr/bin/python3 examples/fashion/train.py fashion_resnet18_exits.onnx

Eighteen weighted layers (stem, eight residual blocks of two convolutions, classifier), widths 16-32-64. With --plain
that is all, trained for accuracy alone; otherwise there is an exit head behind blocks 1, 2, 4 and 6, trained together
with the backbone (deep supervision). The first --images training images train; those behind them stay unseen, for
whoever calibrates. Nothing is chosen by looking at the test images.
"""
import argparse
import gzip
import math
import os
import struct
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

DATA = "/usr/share/datasets/fashion-mnist"
WIDTHS = ((16, 1), (16, 1), (32, 2), (32, 1), (32, 1), (64, 2), (64, 1), (64, 1))  # channels, stride of each block
EXITS_AFTER = (1, 2, 4, 6)


def read_idx(name):
    with gzip.open(os.path.join(DATA, name), "rb") as f:
        magic, count = struct.unpack(">II", f.read(8))
        shape = (count,) + (struct.unpack(">II", f.read(8)) if magic == 2051 else ())
        return torch.from_numpy(np.frombuffer(f.read(), np.uint8).reshape(shape).copy())


class Block(nn.Module):
    def __init__(self, cin, cout, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.short = None
        if stride != 1 or cin != cout:
            self.short = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.short is None else self.short(x)))


class Head(nn.Module):
    """Strided 3x3 convolution, norm, ReLU, average and maximum pooling, linear."""

    def __init__(self, cin, width, stride):
        super().__init__()
        self.conv = nn.Conv2d(cin, width, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, x):
        y = F.relu(self.bn(self.conv(x)))
        pooled = torch.cat([F.adaptive_avg_pool2d(y, 1), F.adaptive_max_pool2d(y, 1)], 1)
        return self.fc(pooled.flatten(1))


class Net(nn.Module):
    def __init__(self, exits_after):
        super().__init__()
        self.exits_after = exits_after
        self.stem = nn.Conv2d(1, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        blocks, cin = [], 16
        for c, s in WIDTHS:
            blocks.append(Block(cin, c, s))
            cin = c
        self.blocks = nn.ModuleList(blocks)
        heads = [Head(16, 32, 4), Head(16, 32, 4), Head(32, 48, 2), Head(64, 64, 2)]
        self.heads = nn.ModuleList(heads[:len(exits_after)])
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        x = F.relu(self.bn(self.stem((x - 0.2860) / 0.3530)))
        logits, head = [], 0
        for i, block in enumerate(self.blocks, 1):
            x = block(x)
            if i in self.exits_after:
                logits.append(self.heads[head](x))
                head += 1
        logits.append(self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1)))
        return logits


def augment(x, generator):
    """Horizontal flip, shift by up to two pixels, and one erased square, each sample on its own."""
    n = len(x)
    flip = torch.rand(n, generator=generator) < 0.5
    x = torch.where(flip[:, None, None, None], x.flip(3), x)
    padded = F.pad(x, (2, 2, 2, 2))
    dy = torch.randint(0, 5, (n,), generator=generator)
    dx = torch.randint(0, 5, (n,), generator=generator)
    rows = (dy[:, None] + torch.arange(28))[:, :, None]
    cols = (dx[:, None] + torch.arange(28))[:, None, :]
    x = padded[torch.arange(n)[:, None, None], 0, rows, cols].unsqueeze(1)
    cy = torch.randint(0, 28, (n, 1), generator=generator)
    cx = torch.randint(0, 28, (n, 1), generator=generator)
    side = torch.where(torch.rand(n, 1, generator=generator) < 0.5, torch.randint(3, 7, (n, 1), generator=generator), 0)
    grid = torch.arange(28)[None]
    erase = ((grid - cy).abs() < side)[:, :, None] & ((grid - cx).abs() < side)[:, None, :]
    return x.masked_fill(erase[:, None], 0.286)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("output")
    p.add_argument("--plain", action="store_true", help="no exits")
    p.add_argument("--images", type=int, default=60000, help="train on the first so many training images")
    p.add_argument("--epochs", type=int, default=10)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--lr", type=float, default=0.15)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--minutes", type=float, default=0, help="stop the schedule early enough to end in this time")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    generator = torch.Generator().manual_seed(a.seed)
    images = read_idx("train-images-idx3-ubyte.gz")[:a.images].float().div_(255).unsqueeze(1)
    labels = read_idx("train-labels-idx1-ubyte.gz")[:a.images].long()
    exits_after = () if a.plain else EXITS_AFTER
    net = Net(exits_after).to(memory_format=torch.channels_last)
    decay = [w for w in net.parameters() if w.ndim > 1]
    rest = [w for w in net.parameters() if w.ndim <= 1]
    opt = torch.optim.SGD([{"params": decay, "weight_decay": 5e-4}, {"params": rest, "weight_decay": 0}], lr=a.lr,
                          momentum=0.9, nesterov=True)
    per_epoch = len(images) // a.batch
    total, start = a.epochs * per_epoch, time.time()
    average = {k: v.clone() for k, v in net.state_dict().items() if v.is_floating_point()}
    step = 0
    for epoch in range(a.epochs):
        order = torch.randperm(len(images), generator=generator)
        seen = correct = 0
        for i in range(per_epoch):
            progress = step / total
            if a.minutes:
                progress = max(progress, (time.time() - start) / (60 * a.minutes))
            if progress >= 1:
                break
            warm = min(1.0, progress / 0.15)
            lr = a.lr * warm if warm < 1 else a.lr * 0.5 * (1 + math.cos(math.pi * (progress - 0.15) / 0.85))
            for group in opt.param_groups:
                group["lr"] = lr
            index = order[i * a.batch:(i + 1) * a.batch]
            x = augment(images[index], generator).contiguous(memory_format=torch.channels_last)
            y = labels[index]
            outputs = net(x)
            loss = F.cross_entropy(outputs[-1], y)
            teacher = F.softmax(outputs[-1].detach(), 1)
            for early in outputs[:-1]:
                loss = loss + 0.25 * (0.5 * F.cross_entropy(early, y) - 0.5 * (teacher * F.log_softmax(early, 1)).sum(1).mean())
            opt.zero_grad()
            loss.backward()
            opt.step()
            step += 1
            seen += len(y)
            correct += (outputs[-1].argmax(1) == y).sum().item()
            if i % 5 == 0:  # average of the weights over about the last quarter of an epoch
                m = 0.95
                with torch.no_grad():
                    for k, v in net.state_dict().items():
                        if v.is_floating_point():
                            average[k].mul_(m).add_(v, alpha=1 - m)
            if i % 50 == 0:
                print("epoch %d step %d loss %.3f train %.2f %% lr %.4f %.0f s" %
                      (epoch, i, loss.item(), 100 * correct / seen, lr, time.time() - start), flush=True)
        if progress >= 1:
            break
    state = net.state_dict()
    state.update(average)
    net.load_state_dict(state)
    net.eval()
    images = read_idx("t10k-images-idx3-ubyte.gz").float().div_(255).unsqueeze(1)
    labels = read_idx("t10k-labels-idx1-ubyte.gz").long()
    with torch.no_grad():
        hits = [0] * (len(exits_after) + 1)
        for i in range(0, len(images), 500):
            for k, out in enumerate(net(images[i:i + 500])):
                hits[k] += (out.argmax(1) == labels[i:i + 500]).sum().item()
    print("test accuracy of each exit:", " ".join("%.2f" % (h / 100) for h in hits), "after", "%.0f s" % (time.time() - start))
    names = ["exit_%d" % i for i in range(len(exits_after))] + ["logits"]
    net = net.to(memory_format=torch.contiguous_format)
    torch.onnx.export(net, torch.zeros(1, 1, 28, 28), a.output, opset_version=13, input_names=["input"], output_names=names,
                      dynamic_axes={n: {0: "N"} for n in ["input"] + names})


if __name__ == "__main__":
    main()
