"""Trains Simple-CNN by a TensorFlow graph, in a process of its own: TensorFlow and PyTorch bring
an LLVM each, and a process that loads both may crash.

Called with a file of arrays: weights as PyTorch lays them out, images, labels. Each line on stdin
is a number of steps to take; the answer is the CPU seconds they took. At the end of stdin the
weights are written to a second file.
"""

import sys
import time

import numpy as np
import tensorflow as tf

tf1 = tf.compat.v1


def main(given: str, out: str, lr: float, momentum: float) -> None:
    arrays = dict(np.load(given))
    images, labels = arrays.pop("images"), arrays.pop("labels")
    with tf.Graph().as_default():
        x = tf1.placeholder(tf.float32, (None, *images.shape[2:], 1))
        y = tf1.placeholder(tf.int64, (None,))
        weights = {name: tf1.Variable(value) for name, value in arrays.items()}
        h = x
        for name in ("0", "3"):
            kernel = tf.transpose(weights[f"{name}.weight"], (2, 3, 1, 0))
            h = tf.nn.relu(tf.nn.conv2d(h, kernel, 1, "VALID") + weights[f"{name}.bias"])
            h = tf.nn.max_pool2d(h, 2, 2, "VALID")
        h = tf.reshape(tf.transpose(h, (0, 3, 1, 2)), (-1, arrays["7.weight"].shape[1]))
        logits = tf.matmul(h, weights["7.weight"], transpose_b=True) + weights["7.bias"]
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)
        step = tf1.train.MomentumOptimizer(lr, momentum).minimize(tf.reduce_mean(losses))
        alone = tf1.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
        with tf1.Session(config=alone) as session:
            session.run(tf1.global_variables_initializer())
            batch = {x: images.transpose(0, 2, 3, 1), y: labels}
            for line in sys.stdin:
                start = time.process_time()
                for _ in range(int(line)):
                    session.run(step, batch)
                print(time.process_time() - start, flush=True)
            np.savez(out, **session.run(weights))


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(float, sys.argv[3:]))
