import re

import numpy as np
import pytest

from curation.charts import histogram
from curation.tally import Distribution


def drawn(values, step=1.0, **more):
    found = Distribution(step)
    found.add_all(np.asarray(values, float))
    return str(histogram(found, "<what>", **more))


@pytest.mark.parametrize("step", [1, 0.001])
@pytest.mark.parametrize("values", [[3.0], [0.0, 0.0], [1.5, 900.0, 2.5], list(range(1000)), [-30.0, -20.5, -12.0]])
@pytest.mark.parametrize("paper", [None, 14.82])
@pytest.mark.parametrize("limits", [(), (0.01,), (2.0, 900.0)])
def test_every_value_is_in_the_histogram(values, step, paper, limits):
    svg = drawn(values, step, paper=paper, limits=limits)
    assert sum(int(count) for count in re.findall(r"<title>(\d+)</title>", svg)) == len(values)
    assert svg.count('stroke-dasharray="4 3"') == (paper is not None)
    assert svg.count('stroke-dasharray="1.5 2.5"') == len(limits)
    assert "<what>" not in svg
    assert "&lt;what&gt;" in svg
    assert "nan" not in svg
    assert all(0 <= float(x) <= 320 for x in re.findall(r'x1="([-\d.]+)"', svg))


def test_lines_stand_where_their_values_are():
    svg = drawn(np.linspace(0, 10, 1001), 0.01, paper=5.0, limits=[7.5])
    edge = float(re.search(r'text-anchor="end">([\d.]+)', svg).group(1))
    mean, paper, limit = (float(x) for x in re.findall(r'<line x1="([\d.]+)"[^>]*stroke-width', svg))
    assert mean == paper == pytest.approx(320 * 5 / edge, abs=2)
    assert limit == pytest.approx(320 * 7.5 / edge, abs=2)


def test_those_who_do_not_see_it_are_told():
    svg = drawn([1.0, 2.0, 3.0], paper=2.5, limits=[0.5])
    assert "mean 2, from 1 to 3; the paper&#39;s mean 2.5; a rule&#39;s limit 0.5" in svg
