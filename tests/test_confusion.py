"""The confusion matrix and its figure, looked at through matplotlib's own objects before it is drawn."""

import io

import numpy as np
import pytest

from tinyres.analysis import confusion
from tinyres.analysis.confusion import confusion_matrix, draw_confusion

LABELS = np.array([0, 0, 0, 1, 1, 2])
PREDICTIONS = np.array([0, 0, 1, 1, 1, 0])
COUNTS = [[2, 1, 0], [0, 2, 0], [1, 0, 0]]


@pytest.fixture
def drawn(monkeypatch):
    """drawn(labels, predictions, classes) -> (picture, texts of the cells, axes), and the title is axes.get_title()."""
    figures = []
    monkeypatch.setattr(confusion, "write_png", lambda figure, path: figures.append(figure))

    def draw(labels, predictions, classes, title=""):
        draw_confusion(labels, predictions, classes, "nowhere.png", title)
        axes = figures[-1].axes[0]
        texts = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in axes.texts}
        return axes.images[0], texts, axes

    return draw


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.uint64])
def test_rows_are_true_and_columns_predicted(dtype):
    counts = confusion_matrix(LABELS.astype(dtype), PREDICTIONS.astype(dtype), 3)
    assert counts.dtype == np.int64 and counts.tolist() == COUNTS
    many = confusion_matrix(np.full(5, 199, dtype=dtype), np.full(5, 198, dtype=dtype), 200)  # 199 * 200 is no uint8
    assert many[199, 198] == 5 and many.sum() == 5
    assert confusion_matrix(LABELS[:0], PREDICTIONS[:0], 3).tolist() == [[0] * 3] * 3


@pytest.mark.parametrize("labels, predictions, error, message", [
    ([0, 1], [0, 1, 1], ValueError, r"labels have shape \(2,\) and predictions \(3,\)"),
    ([[0, 1]], [[0, 1]], ValueError, r"shape \(1, 2\)"),
    ([0, 3], [0, 1], ValueError, "labels go from 0 to 3, expected 0 to 2 for 3 classes"),
    ([0, 1], [-1, 1], ValueError, "predictions go from -1 to 1"),
    ([0, 1], [0.1, 0.9], TypeError, r"predictions are float64, .* logits.argmax\(1\)"),
])
def test_what_cannot_be_counted_is_refused(labels, predictions, error, message, tmp_path):
    with pytest.raises(error, match=f"confusion_matrix: .*{message}"):
        confusion_matrix(labels, predictions, 3)
    with pytest.raises(error, match=message):
        draw_confusion(labels, predictions, ["a", "b", "c"], tmp_path / "c.png")
    assert list(tmp_path.iterdir()) == []


def test_few_classes_are_drawn_with_counts_and_names(drawn):
    picture, texts, axes = drawn(LABELS, PREDICTIONS, ["cat", "dog", "a very long name for a bird of prey"], "resnet8")
    assert np.allclose(picture.get_array(), [[2 / 3, 1 / 3, 0], [0, 1, 0], [1, 0, 0]])
    assert texts == {(0, 0): "2", (0, 1): "1", (1, 1): "2", (2, 0): "1", (2, 2): "0"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert axes.get_title() == "resnet8\naccuracy 66.67% (4 of 6)"
    names = [[tick.get_text() for tick in ticks] for ticks in (axes.get_xticklabels(), axes.get_yticklabels())]
    assert names == [["cat", "dog", "a very long name for ..."]] * 2
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first class is at the top, as in the matrix


def test_many_classes_are_drawn_without_counts(drawn):
    labels = np.arange(100).repeat(3)
    picture, texts, axes = drawn(labels, (labels + (np.arange(300) % 3 == 0)) % 100, [f"c{i}" for i in range(100)])
    assert texts == {} and len(axes.get_xticklabels()) == 100
    shares = picture.get_array()
    assert np.allclose(np.diag(shares), 2 / 3) and shares[3, 4] == pytest.approx(1 / 3) and shares[4, 3] == 0
    assert axes.get_title() == "accuracy 66.67% (200 of 300)"
    assert "c7" not in [tick.get_text() for tick in drawn(labels, labels, ["c7"] * 300)[2].get_xticklabels()]


def test_the_file_is_a_png_whatever_the_classes_are_called(tmp_path, recwarn):
    image = pytest.importorskip("PIL.Image", reason="Pillow reads the figure back")
    draw_confusion([0, 1, 1], [0, 1, 0], ["$\\frac{$", "\u9ce5"], tmp_path / "c.png", "$x_$")
    with image.open(io.BytesIO((tmp_path / "c.png").read_bytes())) as picture:
        assert picture.format == "PNG" and min(picture.size) > 300
    assert [str(warning.message) for warning in recwarn if "Glyph" in str(warning.message)] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.png"]
