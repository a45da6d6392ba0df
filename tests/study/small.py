"""Sizes with which the whole study takes seconds, and text for it."""

from fwl_ref.lm.model import Config
from fwl_ref.lm.train import TrainSettings
from fwl_ref.study.settings import Sizes


def write_text(folder, documents=40, shift=0):
    """Short documents, several in every part."""
    folder.mkdir(parents=True)
    for i in range(documents):
        (folder / f"{i}.txt").write_text(f"the {i + shift}th cat sat on mat {i * i + shift}. " * 12)
    return str(folder)


def tiny(corpora):
    """One layer, a few steps, one seed."""
    return Sizes(
        config=Config(width=8, layers=1, heads=2, chunk=5),
        training=TrainSettings(steps=4, batch=2, window=16, warmup=2),
        corpora=tuple(corpora),
        windows=(16,),
        seeds=(0,),
        few=(0,),
        lengths=(0.5,),
        widths=(),
        layers=(),
        segment=5,
        validation=(1, 34),
        test=(2, 50),
        statistics_batches=2,
        sgd=(0.02, 0.1),
        rms=(1e-3,),
        block=(0.1,),
        block_rms=(1e-3,),
        untrained=(0.01,),
        decays=(0.0,),
        thetas=(5.0, 10.0),
        shares=(0.1, 0.3),
        more=1,
        order=3,
    )
