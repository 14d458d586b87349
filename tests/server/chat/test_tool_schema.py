"""The schema that forces a call."""

import json

import pytest
from llama_cpp import LlamaGrammar

from server.chat.tool_schema import forced_call
from shared.errors import InvalidRequest


def tool(name, **parameters):
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


WEATHER = tool("weather", type="object", properties={"city": {"type": "string"}})
TREE = tool(
    "plant",
    type="object",
    properties={"root": {"$ref": "#/$defs/node"}},
    **{"$defs": {"node": {"type": "object", "properties": {"leaf": {"type": "string"}}}}},
)


def resolved(schema, ref):
    place = schema
    for key in ref.removeprefix("#/").split("/"):
        place = place[key]
    return place


def test_one_function_is_one_object():
    schema = forced_call([WEATHER, TREE], "weather")
    name, parameters = schema["properties"].values()
    assert name == {"const": "weather"}
    assert resolved(schema, parameters["$ref"]) == WEATHER["function"]["parameters"]
    assert list(schema["properties"]) == sorted(schema["properties"])


def test_several_functions_are_a_choice():
    calls = forced_call([WEATHER, TREE])["anyOf"]
    assert [call["properties"]["name"]["const"] for call in calls] == ["weather", "plant"]


def test_references_move_with_their_schema():
    for tools in ([TREE], [WEATHER, TREE]):
        schema = forced_call(tools)
        call = schema.get("anyOf", [schema])[-1]
        parameters = resolved(schema, call["properties"]["parameters"]["$ref"])
        ref = parameters["properties"]["root"]["$ref"]
        assert resolved(schema, ref) == TREE["function"]["parameters"]["$defs"]["node"]


def test_llama_cpp_makes_a_grammar_of_it():
    for tools in ([WEATHER], [WEATHER, TREE]):
        grammar = LlamaGrammar.from_json_schema(json.dumps(forced_call(tools)), verbose=False)
        assert "root" in grammar._grammar


def test_a_function_that_is_not_there_is_refused():
    with pytest.raises(InvalidRequest, match="tool_choice"):
        forced_call([WEATHER], "nothing")
