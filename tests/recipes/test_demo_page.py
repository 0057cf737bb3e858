from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from recipes.demo_page import loss_curve


@given(st.lists(st.floats(min_value=0, max_value=1e6), min_size=1, max_size=50))
def test_a_loss_curve_is_well_formed_and_has_a_point_a_step_inside_its_frame(losses):
    drawing = ElementTree.fromstring(str(loss_curve(losses)))
    points = [tuple(map(float, point.split(","))) for point in drawing.find("polyline").get("points").split()]
    assert len(points) == len(losses)
    assert all(0 <= x <= 300 and 0 <= y <= 120 for x, y in points)


def test_a_falling_loss_falls_on_the_page():
    drawing = ElementTree.fromstring(str(loss_curve([3.0, 2.0, 1.0])))
    heights = [float(point.split(",")[1]) for point in drawing.find("polyline").get("points").split()]
    assert heights == sorted(heights)
