"""Structured captions."""

import json

import pytest

from pyramid_model.captioning.structured import FIELDS, StructureError, as_prose, read_structured


def test_a_structured_answer_is_read_through_slips_of_syntax():
    fields = {name: f"a {name}." for name in FIELDS}
    whole = json.dumps(fields)
    assert read_structured(whole) == (fields, False)
    assert read_structured(f"Here it is:\n```json\n{whole[:-1]},}}\n```") == (fields, True)
    assert as_prose(fields | {"subject": "élan"}).startswith("Élan. A action. A background.")
    blank = json.dumps(fields | {"action": ""})
    faults = {"no object": "no JSON", "[1]": "no JSON", "{}": "'subject' is a required", blank: "action: ''"}
    faults[whole[:-1] + ', "mood": 1}'] = "'mood' was unexpected"
    for wrong, why in faults.items():
        with pytest.raises(StructureError, match=why):
            read_structured(wrong)
