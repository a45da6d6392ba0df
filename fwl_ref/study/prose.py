"""What the page says around its tables."""

TITLES = {
    1: "What it buys",
    2: "Does it last?",
    3: "Is it the gradient?",
    4: "Where it helps",
    5: "Ablations",
    6: "Training health",
}

OPENING = """# The study

What fast weights buy on real text, beside everything that could buy the same: more training, a
longer window, dynamic evaluation, a cache, and compressors of the same documents. This page is
written by one command, `make study`, from its results and nothing else. The command can be stopped
at any time and goes on where it was.
"""

NOT_RUN = """
**It has not been run yet.** The plan has {runs} runs. The command states what they will take on
this machine before it starts.
"""

NOT_BUILT = """The plan has no runs for this question yet. It asks for the same place in the network
with a linear-attention, delta-rule or gated-delta memory of learned keys and values. That is a
variant of the model that does not exist. So nothing here says whether it is the gradient.
"""

NUDGED = """*Moved by rounding*: mean size of the change of bits, carried, when all starting
parameters are larger by a millionth part.
"""

METHOD = """## How it was done

- Bits per byte are means over documents, each document counting as one. "±" is half of a 95 %
  interval over documents and seeds, from a two-way analysis of variance: other documents and other
  seeds would give another mean. A change is paired: the same document, the same seed, one reading
  less the other. With one seed the interval is over documents alone.
- Step sizes, decays and the cache's settings that are not learned are tuned for each model on
  {validation} validation documents. If the best step size was the smallest or largest that was
  tried, up to {more} further ones were tried; "edge" marks where the best one still is at an edge.
- Everything else was chosen before: the model ({layers} layers of width {width}), {steps} steps of
  {batch} windows of {window} bytes, and the learning rate are those of the demo. Nothing was tuned
  for either side here.
- Test documents: {test} of each corpus, at most {bytes} bytes of each. No model was trained on any
  of them.
- *Equal training compute*: the plain model takes as many steps more as its step is cheaper; a
  training step is taken as three readings.
- *Longer window*: the longest multiple of the window at which the plain model costs no more
  multiply-adds a byte than fast weights. It is trained at that window, on batches of as many bytes,
  or of one sequence where that is more.
- *gzip* and *xz* are counted without their headers. *n-grams* mixes orders 0 to {order} by Witten
  and Bell's escape. All three see one document and nothing else, while the models have been trained
  on text of the same kind.
- Time is seconds a byte over those of the plain model, on a machine that does other things too. It
  is a hint. Multiply-adds are counted.
"""
