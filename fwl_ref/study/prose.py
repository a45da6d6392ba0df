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
longer window, another memory, dynamic evaluation, a cache, and compressors of the same documents.
This page is written by one command, `make study`, from its results and nothing else. The command
can be stopped at any time and goes on where it was. The plan takes about as long as the two hours
that the command gives itself. It is in the order of importance, every group of rows for all seeds
before the next group, so that what is there has an interval.
"""

NOT_RUN = """
**It has not been run yet.** The plan has {runs} runs. The command states what they will take on
this machine before it starts.
"""

MEMORIES = """*Projections*: the plain model with another memory before its block. Its keys and
values are learned projections of the features and of the label, which a token writes as soon as it
has been predicted, as fast weights write its gradient. It is trained in the same way, with the
state reset in every window, and reading costs within a tenth of what fast weights cost. It has more
parameters than the two other models, by those of its projections and by a row for each label, so
what it gains is not the memory's alone. Its heads, their width and its learning rate were not
tuned.
"""

NUDGED = """*Moved by rounding*: mean size of the change of bits, carried, when all starting
parameters are larger by a millionth part. With one norm for all gradients, norms are those after
clipping.
"""

ABLATIONS = """*Only ... fast*: the step sizes of the other parameters are 0 and stay so. *Gradients
afresh*: those of a segment are taken at the weights that the segments before it have left, and
training goes through that (true dynamic evaluation of the block, where a segment is read at its
start); decay is once a segment there. *State carried in training*: windows are drawn in pairs, the
first is only read, and the second starts from the state that is left. *Momentum*: steps start a
tenth as long, for each is taken ten times over; its decay is fixed. *The last ... gradients alone*:
they do not fade, and older ones are taken back. *A leak*: every byte has learned from itself before
it is predicted. That is no prediction. It stands here to show what a mistake of one place would
look like.

*Step sizes may be negative*: none became it in so few steps, so both are one model. A change below
0.1 bits means nothing here: rounding alone moves as much (section 6). There is no plain model of
300 steps, so this does not say what fast weights gain at that length.

*A learned scale for each key and value* is the trainable form of an RMS preconditioner: each
gradient is written times a number for its row and one for its column, 1 at the start. The RMS rule
itself, with a divisor for every weight, would cost a read for each of its heads, up to 129 here.
"""

METHOD = """## How it was done

- Bits per byte are means over documents, each document counting as one. "±" is half of a 95 %
  interval over documents and seeds, from a two-way analysis of variance: other documents and other
  seeds would give another mean. A change is paired: the same document, the same seed, one reading
  less the other. With one seed the interval is over documents alone. With two it depends on whether
  the two happen to agree: it is narrow or enormous, and neither says much. A change in per cent has
  the interval of the change alone.
- Step sizes, decays and the cache's settings that are not learned are tuned for each model on
  {validation} validation documents. If the best step size was the smallest or largest that was
  tried, up to {more} further ones were tried; "edge" marks where the best one still is at an edge.
  What the cache and the n-grams try is fixed, and at the edge of it they may have more to gain.
- Everything else was chosen before: the model ({layers} layers of width {width}), {steps} steps of
  {batch} windows of {window} bytes, and the learning rate are the defaults of the command `train`.
  Fast weights start from a step size and a decay that were chosen on text of `stdlib`
  ([measurements](measurements.md)). Nothing else was tuned for either side.
- Fast models have more training compute than the plain models that the cache and the n-grams are
  put on. Both on a plain model of equal training compute have not been run.
- Ablations and training health are asked of models trained half as long, and like lengths and
  sizes with the first two seeds.
- Test documents: {test} of each corpus, or all that its test part has; at most {bytes} bytes of
  each. No model was trained on any of them. `topics` has three, and its intervals are wide.
- *Equal training compute*: the plain model takes as many steps more as its step is cheaper; a
  training step is taken as three readings.
- *Longer window*: the longest multiple of the window at which the plain model costs no more
  multiply-adds a byte than fast weights. It is trained at that window, on batches of as many bytes,
  or of one sequence where that is more, and so on fewer sequences; its learning rate was not tuned.
- *gzip* and *xz* are counted without their headers. *n-grams* mixes orders 0 to {order} by Witten
  and Bell's escape. All three see one document and nothing else, while the models have been trained
  on text of the same kind. *n-grams of the document* mixes these probabilities with a model's.
- Time is seconds a byte over those of the plain model, on a machine that did other things too, and
  more at some hours than at others. It contradicts itself in places. Multiply-adds are counted.
- Every row is in `benchmarks/results/study.jsonl`, with what it was tuned to and the bits of each
  document. As `results.jsonl` in `results/study/` it is what `make study` goes on from.
"""
