import copy
import json

from endpoint_server import VIEW, script
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.answers import Answer, AnswerError, answer_schema, read_answer


def test_the_schema_is_plain_and_asks_for_every_field():
    text = json.dumps(answer_schema())
    assert "$ref" not in text
    assert '"default"' not in text
    shot = answer_schema()["properties"]["shots"]["items"]
    assert set(shot["required"]) == set(shot["properties"]) == set(script()["shots"][0])
    assert shot["additionalProperties"] is False


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_a_model_answers_is_a_script_or_a_clear_problem(data):
    answer = copy.deepcopy(script())
    part = data.draw(st.sampled_from([answer, *answer["shots"], *answer["characters"], *answer["scenes"]]))
    name = data.draw(st.sampled_from(sorted(part)))
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda s: st.lists(s, max_size=3)
    )
    part[name] = data.draw(values)
    text = json.dumps(answer)
    text = text[: data.draw(st.sampled_from([len(text), len(text) // 2]))]
    problems = ()
    try:
        found = read_answer(text, VIEW, "English")
    except AnswerError as error:
        found, problems = None, error.problems
    assert isinstance(found, Answer) != bool(problems)
    assert all(line.isprintable() for line in problems)
