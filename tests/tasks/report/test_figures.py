"""Charts and histograms as SVG."""

import re

import numpy as np
import pytest

from tasks.inspecting.table_stats import histogram
from tasks.report.figures import Series, Threshold, histogram_figure, line_chart, smoothed


def coordinates(svg: str) -> tuple[np.ndarray, tuple[float, float]]:
    """Points of the lines of a chart, (n 2), and the size of its box."""
    path = "".join(re.findall(r'class="line[^>]*d="([^"]*)"', svg))
    points = np.array([[float(x) for x in point.split()] for point in re.split("[ML]", path) if point])
    return points, tuple(map(float, re.search(r'viewBox="0 0 (\d+) (\d+)"', svg).groups()))


@pytest.mark.parametrize("log", [False, True])
def test_a_chart_keeps_its_lines_inside_and_a_higher_value_higher(log):
    svg = line_chart([Series("loss", [(0, 100.0), (50, 1.0), (100, 0.01)])], log=log)
    points, (width, height) = coordinates(svg)
    assert (points >= 0).all()
    assert (points <= (width, height)).all()
    assert (np.diff(points[:, 0]) > 0).all()
    assert (np.diff(points[:, 1]) > 0).all()  # y runs downwards


def test_a_logarithmic_chart_leaves_out_what_has_no_logarithm():
    points, _ = coordinates(line_chart([Series("loss", [(0, 1.0), (1, 0.0), (2, float("nan")), (3, 0.5)])], log=True))
    assert len(points) == 2
    assert line_chart([Series("loss", [])]) == ""
    assert "NaN" not in line_chart([Series("flat", [(0, 2.0), (1, 2.0)])])


def test_smoothing_keeps_a_constant_and_damps_a_jump():
    assert smoothed([(0, 3.0), (1, 3.0)]) == [(0, 3.0), (1, 3.0)]
    assert smoothed([(0, 0.0), (1, 1.0)])[1][1] < 0.6


def test_a_histogram_pales_what_is_dropped_and_keeps_its_limits_in_view():
    bins = histogram("motion", [float(v) for v in range(10)], num_bins=10)
    svg = histogram_figure(bins, [0] * 5 + [1] * 5, [Threshold(4.5, "above"), Threshold(20.0, "below")])
    assert svg.count('class="bar dropped"') == 5
    assert svg.count('class="bar"') == 5
    assert [float(x) for x in re.findall(r'class="limit" d="M([\d.]+)', svg)][1] <= 300


def test_a_constant_is_one_bar_over_its_value():
    svg = histogram_figure(histogram("white_ratio", [0.0, 0.0]))
    assert re.findall(r">([^<>]+)</text>", svg) == ["0"]
    assert svg.count("<rect") == 1


@pytest.mark.parametrize("values", [[0.0, 10.0], [0.0], [0.2, 1000.0], [0.2]])
@pytest.mark.parametrize("limits", [(0.2, 0.6), (0.2, 0.2), (0.0, 10.0), (9.7, 9.8)])
def test_labels_of_limits_stay_in_the_figure_and_cover_neither_each_other_nor_another_line(values, limits):
    low, high = limits
    svg = histogram_figure(histogram("x", values), (), [Threshold(low, "above"), Threshold(high, "below")])
    labels = re.findall(r'limit-label" x="([\d.]+)" y="(\d+)" textLength="([\d.]+)"', svg)
    spans = [(float(x), float(x) + float(length), int(y)) for x, y, length in labels]
    assert all(begin >= 0 and end <= 300 for begin, end, _ in spans)
    (begin, end, row), (other_begin, other_end, other_row) = spans
    assert row != other_row or end <= other_begin or other_end <= begin
    for line, own in zip(re.findall(r'class="limit" d="M([\d.]+) (\d+)V', svg), spans, strict=True):
        over = [span for span in spans if span is not own and span[0] <= float(line[0]) <= span[1]]
        assert all(int(line[1]) >= y - 8 for _, _, y in over)
