# %% [markdown]
# # 8. Train and adapt
#
# **Question.** All that mathematics: does it help to read real text? And if so, where in a document, and on which characters?
#
# **Answer to look forward to.** Yes, even for a model so small that it trains in this notebook. It helps little at the start of a text and
# more later. It helps with what comes back, and most where that is rare. On what is new it helps little, or costs something.
#
# You need notebook 5. All of this notebook takes about twenty seconds, so the effect is small; `make demo` trains larger models for some
# minutes and compares with dynamic evaluation. Nothing is downloaded: the text is the source code of Python's standard library.

# %%
import inspect

import matplotlib.pyplot as plt
import numpy as np

from fwl_ref.backend import as_dtype
from fwl_ref.exercises import agree, check
from fwl_ref.fwl import FastSettings, fast_block_fwd
from fwl_ref.lm import evaluate
from fwl_ref.lm.adamw import adam_init, adam_step, cosine
from fwl_ref.lm.data import load_corpus, training_batch
from fwl_ref.lm.generate import generate
from fwl_ref.lm.model import Config, initialize, loss_and_gradient
from fwl_ref.lm.train import Progress, TrainSettings, clipped, learning_rates, train, train_step
from fwl_ref.ops.cross_entropy import cross_entropy_fwd

# %%
from fwl_ref.slow_block import FastParameters, SlowParameters
from fwl_ref.stream import stream_predict, stream_reveal, stream_start  # noqa: F401  for the last exercise
from fwl_ref.tree import size, tree_map

plt.style.use("fwl_ref.figures.lecture")

# %% [markdown]
# ## The text
#
# A token is a byte. Documents are split by document, 80 % for training, 10 % for choosing settings and 10 % for testing, so that no test
# document has been seen, not even in part.

# %%
corpus = load_corpus("stdlib")
names = [{document.name for document in part} for part in corpus.parts]
assert not names[0] & names[1] and not names[0] & names[2] and not names[1] & names[2]
assert min(len(part) for part in names) > 10
print("no document is in two parts:", True)

# %% [markdown]
# ## One training step, one op a line
#
# The outer loss is the mean cross-entropy of the *fast* logits. Its gradient goes through the read and through the write. What follows is
# ordinary: clip the gradient by its length, then one step of AdamW. The six step sizes and the decay are parameters too. But their
# gradient is often longer than that of all weights together, so each of the two is clipped by its own length.

# %%
plain_config = Config(width=48, layers=1, heads=2, fast=False)
fast_config = plain_config._replace(fast=True)
settings = TrainSettings(steps=600, batch=2, window=256, rate=4e-3, warmup=20, step_size=0.008, decay=0.01)

params = initialize(fast_config, settings.seed, step_size=settings.step_size, decay=settings.decay)
begin = Progress(params, adam_init(params), ())
batch = training_batch(corpus.train, settings.batch, settings.window, settings.seed, 0)
loss, gradient = loss_and_gradient(params, *batch, fast_config)
gradient = clipped(gradient, settings.clip)
rates, decays = learning_rates(params, fast_config, settings, cosine(0, settings.steps, settings.warmup))
stepped, _ = adam_step(params, gradient, begin.adam, rates, decays)

# %% [markdown]
# Two witnesses: the library's own step, and differences of the loss with respect to a step size, in float64.

# %%
assert agree(stepped, train_step(begin, corpus, fast_config, settings).params, rtol=1e-6)

exact = tree_map(lambda p: as_dtype(p, "float64"), params)
wide = batch._replace(weights=batch.weights.astype("float64"))
_, gradient = loss_and_gradient(exact, *wide, fast_config)


def loss_with(eta_W2):
    moved = exact._replace(eta=exact.eta._replace(W2=np.asarray(eta_W2)))
    return float(loss_and_gradient(moved, *wide, fast_config)[0])


difference = (loss_with(0.008 + 1e-5) - loss_with(0.008 - 1e-5)) / 2e-5
assert abs(difference - gradient.eta.W2) < 1e-4 * abs(difference)
print("gradient of a step size agrees with differences:", abs(difference - gradient.eta.W2) < 1e-4 * abs(difference))

# %% [markdown]
# ## Two models, one start
#
# To see what the fast weights do and nothing else, both models share the first half of their training: 300 steps as a plain model. Then
# they part. One goes on as it is. The other gets step sizes of 0.008 and learns with fast weights. Both have the same parameters, data
# and number of steps.

# %% tags=["slow"]
saved = {}
plain = train(corpus, plain_config, settings, save=lambda p: saved.setdefault(p.adam.step, p), save_every=300, quiet=True)
middle = saved[300]
opened = middle._replace(params=evaluate.with_step_size(middle.params, settings.step_size, settings.decay))
fast = train(corpus, fast_config, settings, start=opened, quiet=True)
assert size(plain.params) == size(fast.params)


# %% tags=["slow"]
def curve(history):
    bits = np.array([record.bits_per_byte for record in history])
    return np.convolve(bits, np.ones(40) / 40, "valid")  # mean of 40 steps


steps = np.arange(40, 601)
fig, ax = plt.subplots(figsize=(9, 4.5))
ax.plot(steps, curve(plain.history), marker="", label="plain")
ax.plot(steps[260:], curve(fast.history)[260:], marker="", label="fast weights from step 300 on")
ax.set(xlabel="training step", ylabel="bits per byte", title="Training loss, mean of 40 steps", ylim=(3, 5))
ax.legend()
plt.show()

# %% tags=["slow"]
before, after = curve(plain.history)[-1], curve(fast.history)[-1]
assert after < before < 4.2
print("on the training text the fast model ends below the plain one:", after < before)

# %% [markdown]
# ## Documents that neither has seen
#
# Now read the test documents. Both models read windows of 256 bytes. The fast model starts each window with nothing learned, so all that
# it gains it has learned inside the window.

# %% tags=["slow"]
documents = [d._replace(data=d.data[: 4 * 256 + 1]) for d in corpus.test if len(d.data) > 4 * 256]
losses = {
    "plain": [evaluate.static(plain.params, plain_config, document, 256) for document in documents],
    "fast": [evaluate.fast_weights(fast.params, fast_config, document, 256) for document in documents],
}
bits = {name: np.stack(rows) / np.log(2) for name, rows in losses.items()}  # (documents, bytes)
gain = bits["plain"] - bits["fast"]  # bits saved on each byte

# %% tags=["slow"]
by_document = np.sort(100 * gain.mean(axis=1) / bits["plain"].mean(axis=1))[::-1]
fig, ax = plt.subplots()
ax.bar(np.arange(len(by_document)), by_document, color="C0")
ax.axhline(0, color="black", linewidth=1)
ax.set(xlabel="test documents, sorted", ylabel="bits saved (%)", title="Fast weights against the plain model")
plt.show()
assert gain.mean() > 0.02 and np.mean(by_document > 0) > 0.7
print("bits saved on unseen text:", gain.mean() > 0.02, " on most documents:", np.mean(by_document > 0) > 0.7)

# %% [markdown]
# ## Gain by position
#
# At the first byte of a window nothing has been written yet. What has been written grows from there, and so should the gain. (It does not
# grow for ever. Notebook 6 has a suspect: all gradients are taken at the slow weights.)

# %% tags=["slow"]
by_position = gain.reshape(-1, 8, 32).mean(axis=(0, 2))  # all windows, eight stretches of 32 bytes
fig, ax = plt.subplots()
ax.plot(np.arange(8) * 32 + 16, by_position)
ax.set(xlabel="bytes read in this window", ylabel="bits saved per byte", title="Gain by position", ylim=(0, None))
plt.show()
assert by_position[2:].mean() > 1.5 * by_position[0]
print("later in the window more is gained than at its start:", by_position[2:].mean() > 1.5 * by_position[0])

# %% [markdown]
# ## Gain by frequency
#
# A model has learned frequent characters well, and there is little left to gain. A rare one is different: if it occurs in a document, it
# may well be part of the subject and come back. So we sort the bytes twice: by how frequent they are in the training text, and by whether
# the same byte has already occurred in this window.

# %% tags=["slow"]
counts = np.bincount(np.concatenate([d.data for d in corpus.train]), minlength=256)
labels = np.stack([d.data[1:] for d in documents])  # (documents, bytes)
share = 1000 * (counts / counts.sum())[labels]  # per thousand bytes of training text
window = labels.reshape(-1, 256)  # (windows, bytes)
earlier = np.tril(window[:, :, None] == window[:, None, :], -1)  # (windows, bytes, bytes)
again = earlier.any(axis=2).reshape(labels.shape)  # (documents, bytes) has occurred in this window
classes = [(share >= low) & (share < high) for low, high in ((0, 4), (4, 16), (16, 1000))]
gain_first, gain_again = ([gain[c & seen].mean() for c in classes] for seen in (~again, again))

# %% tags=["slow"]
fig, ax = plt.subplots()
ax.bar(np.arange(3) - 0.2, gain_first, width=0.38, color="C1", hatch="//", label="first time in this window")
ax.bar(np.arange(3) + 0.2, gain_again, width=0.38, color="C0", label="again")
ax.axhline(0, color="black", linewidth=1)
ax.set_xticks(range(3), ["below 4", "4 to 16", "above 16"])
ax.set(xlabel="times per thousand bytes of training text", ylabel="bits saved per byte", title="Gain by frequency")
ax.legend()
plt.show()

# %% [markdown]
# What comes back gains, and rare bytes more than frequent ones. What is new gains less, or costs. (The bars on the left are the least
# certain: rare bytes are rare in training too. With another seed they come out smaller, and their order stays.)

# %% tags=["slow"]
assert all(a > f for a, f in zip(gain_again, gain_first, strict=True))
assert min(gain_again[:2]) > gain_again[2]
print("bytes that come back gain more than new ones:", all(a > f for a, f in zip(gain_again, gain_first, strict=True)))
print("the rarer ones more than the frequent ones:", min(gain_again[:2]) > gain_again[2])

# %% [markdown]
# ## Gain by repetition
#
# Has this byte been seen before *after the same four bytes*, in the same document? Count how often.


# %% tags=["slow"]
def seen_before(data):
    """For each byte but the first: how often it has already followed the same four bytes."""
    seen, counts = {}, []
    for t in range(1, len(data)):
        key = data[max(0, t - 4) : t + 1].tobytes()
        counts.append(seen.get(key, 0))
        seen[key] = counts[-1] + 1
    return counts


times = np.array([seen_before(d.data) for d in documents])  # (documents, bytes)
blank = labels == ord(" ")

# %% tags=["slow"]
by_times = [gain[(times >= low) & (times < high) & ~blank].mean() for low, high in ((0, 1), (1, 2), (2, 4), (4, 1000))]
fig, ax = plt.subplots()
ax.bar(["never", "once", "2 or 3 times", "4 times or more"], by_times, color="C0")
ax.set(xlabel="seen before in this document, after the same four bytes", ylabel="bits saved per byte", title="Gain by repetition")
plt.show()
assert by_times[1] > 2 * by_times[0] and by_times[2] > by_times[1]
print("what repeats gains more:", by_times[1] > 2 * by_times[0], " the more often, the more:", by_times[2] > by_times[1])

# %% [markdown]
# Blanks are left out here. Indentation repeats all the time, and the plain model knows it well.

# %% [markdown]
# ## Does it last?
#
# This model has been trained for half a minute. Is there less to gain on a better one? `make study` has trained such models for longer, and
# wider and deeper ones. These are the results of section 2 of its page, docs/study.md: bits per byte of the plain model, the change by
# fast weights that are carried, and half of its 95 % interval.

# %%
study = {
    "150 steps": (3.572, -0.141, 0.029),
    "600 steps": (3.037, -0.510, 0.137),
    "2400 steps": (2.264, -0.331, 0.048),
    "width 64": (3.195, 0.079, 0.034),
    "width 192": (2.950, -0.474, 1.525),
    "1 layers": (3.076, -0.447, 0.682),
    "6 layers": (3.010, -0.399, 1.744),
}

# %%
fig, ax = plt.subplots(figsize=(9, 5))
for name, (bits, change, interval) in sorted(study.items(), key=lambda item: item[1]):
    ax.errorbar(-change, f"{name}: {bits:.2f}", xerr=interval, marker="o", color="C0", capsize=6)
ax.axvline(0, color="black", linewidth=1)
ax.set(xlabel="bits saved per byte", ylabel="model, and its bits per byte", xlim=(-0.2, 0.8), title="Better models are at the bottom")
plt.show()
assert study["150 steps"][1] > study["2400 steps"][1] > study["600 steps"][1]
print("most is saved neither on the worst nor on the best:", study["150 steps"][1] > study["2400 steps"][1] > study["600 steps"][1])

# %% [markdown]
# In bits it grows, then shrinks. Why is not measured here. The narrowest model is harmed, in both runs. The model of 600 steps has
# three runs, the others two; where two do not happen to agree, the interval leaves the picture.

# %% [markdown]
# ## Samples, before and after
#
# The model has read nothing but source code. Give it a poem, *Jabberwocky*, by Lewis Carroll. It reads the poem with fast weights, then
# writes. *Before* is the same model with all step sizes zero: it sees the poem, but does not learn from it.
#
# Does it write more like the poem? After so little training it knows few words, so we count something smaller. Which share of a sample's
# sequences of three bytes occurs in the poem? We draw ten samples each and look at all of them. One sample shows nothing.

# %%
poem = b"""
Twas brillig, and the slithy toves
Did gyre and gimble in the wabe:
All mimsy were the borogoves,
And the mome raths outgrabe.

Beware the Jabberwock, my son!
The jaws that bite, the claws that catch!
Beware the Jubjub bird, and shun
The frumious Bandersnatch!

"""

# %%
poem += b"""He took his vorpal sword in hand;
Long time the manxome foe he sought
So rested he by the Tumtum tree,
And stood awhile in thought.

And, as in uffish thought he stood,
The Jabberwock, with eyes of flame,
Came whiffling through the tulgey wood,
And burbled as it came!

Twas"""

# %% tags=["slow"]
triples = {poem[i : i + 3] for i in range(len(poem) - 2)}
still = evaluate.with_step_size(fast.params, 0.0, settings.decay)
options = {"window": 128, "temperature": 0.5, "adapt": False}
shares = {}
for name, model in (("before", still), ("after", fast.params)):
    samples = [generate(model, fast_config, poem, 80, seed=seed, **options) for seed in range(10)]
    shares[name] = np.array([np.mean([text[i : i + 3] in triples for i in range(len(text) - 2)]) for text in samples])

# %% tags=["slow"]
fig, ax = plt.subplots()
for place, found in enumerate(shares.values()):
    ax.plot(np.full(len(found), place), 100 * found, color=f"C{place}", linestyle="none", alpha=0.6)
    ax.plot([place - 0.2, place + 0.2], [100 * found.mean()] * 2, color="black", marker="", linestyle="-")
ax.set_xticks(range(2), [f"{name} learning from it" for name in shares])
ax.set(xlabel="a mark is a sample, a line their mean", ylabel="triples found in the poem (%)", xlim=(-0.5, 1.5), ylim=(0, 100))
ax.set_title("What the model writes after the poem")
plt.show()

# %% tags=["slow"]
before, after = shares["before"], shares["after"]
error = np.sqrt((before.var(ddof=1) + after.var(ddof=1)) / len(before))  # of the difference of the means
assert after.mean() > 1.5 * before.mean() and after.mean() - before.mean() > 3 * error
print("after learning from it, more of what it writes is in the poem:", after.mean() > 1.5 * before.mean())
print("by more than three standard errors:", after.mean() - before.mean() > 3 * error)

# %% [markdown]
# It has learned how short pieces of the poem are spelt. This measures nothing else: it is no verse, and no sense.

# %% [markdown]
# ## The library's source
#
# Reading a document with fast weights is a loop over windows. `carry` hands the state on from window to window, so that all of a long
# document can be learned. Otherwise a window is read as if it stood alone; below, that is checked on the model from before training.

# %%
sources = [inspect.getsource(f) for f in (evaluate.fast_weights, evaluate.carry, evaluate.read_window)]
print(*sources, sep="\n\n")

# %%
two_windows = corpus.test[0]._replace(data=corpus.test[0].data[:513])
second = two_windows._replace(data=two_windows.data[256:])
alone = evaluate.fast_weights(params, fast_config, second, 256)
reset = evaluate.fast_weights(params, fast_config, two_windows, 256)[256:]
carried = evaluate.fast_weights(params, fast_config, two_windows, 256, carried=True)[256:]
assert agree(reset, alone, rtol=1e-5) and not agree(carried, alone, rtol=1e-3)
print("without carrying, the second window stands alone:", agree(reset, alone, rtol=1e-5))

# %% [markdown]
# ## Exercise: predict a shape
#
# The state is what a fast weight layer has learned: one sum of past gradients per fast parameter and sequence. Take a batch of 3
# sequences of 1000 bytes, width $D = 48$, hidden width $F = 4D$. Which shapes has the state of `W1`, and which that of `gain`?

# %% tags=["exercise"]
state_W1 = None
state_gain = None

# %%
hints_of_state_W1 = {
    "One matrix for each token is what we avoid.": (3, 1000, 48, 192),
    "Is the memory shared by the sequences of a batch?": (48, 192),
    "W1 goes from D to F.": (3, 192, 48),
}
check("state_W1", state_W1, (3, 48, 192), mistakes=hints_of_state_W1)
check("state_gain", state_gain, (3, 48), mistakes={"Is it per token?": (3, 1000, 48), "Is it shared by the sequences?": (48,)})

# %% [markdown]
# ## Exercise: bits per byte
#
# `losses` is a list of arrays, the losses in **nats** of every byte of each document; documents differ in length. Return the bits per
# byte of the whole test set: every byte counts the same.


# %% tags=["exercise"]
def my_bits_per_byte(losses):
    return None  # a number


# %%
rng = np.random.default_rng(0)
losses_of_three = ([rng.exponential(2.0, n) for n in (5, 50, 500)],)
hints_of_my_bits_per_byte = {
    "A nat is not a bit: a bit is a factor of 2 in probability.": lambda losses: float(np.concatenate(losses).mean()),
    "Nats to bits: does the number get larger or smaller?": lambda losses: float(np.concatenate(losses).mean() * np.log(2)),
    "A short document counts as much as a long one here.": lambda losses: float(np.mean([x.mean() for x in losses]) / np.log(2)),
}
check("my_bits_per_byte", my_bits_per_byte, evaluate.bits_per_byte, [losses_of_three], mistakes=hints_of_my_bits_per_byte)

# %% [markdown]
# ## Exercise: read a text as it comes
#
# The fast pass above sees a whole window at once. A text that is still being written comes byte by byte. Write the loop with the library's
# streaming functions: for each token predict, score, and only then reveal. Return the losses (T,) in nats. They must be those of
# `fast_block_fwd`, to rounding.
#
#     stream = stream_start(1, slow)
#     logits, stream = stream_predict(stream, x[t : t + 1], slow, eta, options)
#     stream = stream_reveal(stream, labels[t : t + 1], np.ones(1), slow, decay, options)
#     nll, _ = cross_entropy_fwd(logits, labels[t : t + 1])


# %% tags=["exercise"]
def read_as_it_comes(x, labels, slow, eta, decay, options):
    return None  # (T,)


# %%
def in_one_pass(x, labels, slow, eta, decay, options):
    (logits, logits_slow, _), _ = fast_block_fwd(x[None], labels[None], np.ones((1, len(x))), slow, eta, decay, options)
    return cross_entropy_fwd(logits, labels[None])[0][0], cross_entropy_fwd(logits_slow, labels[None])[0][0]


shapes = ((6, 24), (24,), (24, 6), (6,), (6,), (6,), (6, 9), (9,))
slow = SlowParameters(*(0.5 * rng.standard_normal(shape) for shape in shapes))
case = (rng.standard_normal((7, 6)), rng.integers(0, 9, 7), slow, FastParameters(*(np.asarray(0.1),) * 6), np.asarray(0.05), FastSettings())

# %%
hints_of_read_as_it_comes = {
    "Nothing is learned: is what reveal returns used for the next token?": lambda *a: in_one_pass(*a)[1],
    "Does the loop pass the decay on?": lambda x, y, p, e, _, o: in_one_pass(x, y, p, e, np.asarray(0.0), o)[0],
}
check("read_as_it_comes", read_as_it_comes, lambda *a: in_one_pass(*a)[0], [case], mistakes=hints_of_read_as_it_comes)
