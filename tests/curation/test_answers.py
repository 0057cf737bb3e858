import copy
import json

from endpoint_server import VIEW, script
from hypothesis import given, settings
from hypothesis import strategies as st

from animeshooter_dataset import AnnotatedBy
from curation.answers import ScriptForm, check, doubts, script_of
from curation.asking import AnswerError, plain_schema, read_form


def test_the_schema_is_plain_and_asks_for_every_field():
    text = json.dumps(plain_schema(ScriptForm))
    assert "$ref" not in text
    assert '"default"' not in text
    shot = plain_schema(ScriptForm)["properties"]["shots"]["items"]
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
    try:
        found = read_form(text, ScriptForm)
        problems = check(found, VIEW, "English")
    except AnswerError as error:
        problems = error.problems
        assert problems
    if not problems:
        told = script_of(found, VIEW, AnnotatedBy(kind="openai", model="m"))
        assert len(told.shots) == 5
        problems = doubts(found, VIEW, "English")
    assert all(line.isprintable() for line in problems)
