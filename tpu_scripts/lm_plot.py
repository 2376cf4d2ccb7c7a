"""The curves of a run as a picture."""

import io

import tensorflow as tf
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tpu_scripts.lm_run import History


def plot_history(history: History, unigram: float, path: str) -> None:
    """Draws loss and learning rate over the steps.

    Args:
      history: the history of the run.
      unigram: bits per byte of the unigram model, for comparison.
      path: the PNG file to write.
    """
    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    loss.plot(*history.column("loss"), label="training")
    loss.plot(*history.column("held_out"), "o-", label="held out")
    loss.axhline(unigram, color="gray", linestyle="--", label="unigram model")
    loss.set_ylabel("bits per byte")
    loss.set_ylim(bottom=0)
    loss.legend()
    loss.grid(alpha=0.3)
    rate.plot(*history.column("learning_rate"), color="tab:green")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("step")
    rate.set_ylim(bottom=0)
    rate.grid(alpha=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(picture.getvalue())
