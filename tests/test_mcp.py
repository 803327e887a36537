"""The MCP server, called by the protocol's own client: in memory, and as a process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

import secant as sc
from secant.cli.server import server
from secant.cli.tools import cut
from secant.errors import BadArgument

mcp = pytest.importorskip("mcp")
anyio = pytest.importorskip("anyio")
PROMPT = "The bridge out of Marin is the"


def asked(lm: sc.LM, tool: str, **given: Any) -> Any:
    """What a client of a server in this process is answered."""
    from mcp.client import Client

    async def ask() -> Any:
        async with Client(server(lambda: lm)) as client:
            return await client.call_tool(tool, given)

    return anyio.run(ask)


def test_tools_are_described(lm: sc.LM) -> None:
    from mcp.client import Client

    async def ask() -> Any:
        async with Client(server(lambda: lm)) as client:
            return (await client.list_tools()).tools

    tools = {tool.name: tool for tool in anyio.run(ask)}
    assert tools.keys() == {"explain", "attribute", "layers", "steer", "study"}
    assert all(tool.description for tool in tools.values())
    assert tools["steer"].input_schema["required"] == ["prompt", "concept", "layer", "strength"]


def test_an_attribution_is_that_of_the_library(lm: sc.LM) -> None:
    found = asked(lm, "attribute", prompt=PROMPT, target=" Golden", versus=" Tower", rows=1000).structured_content
    own = sc.attribute(sc.freeze(lm, PROMPT), " Golden", versus=" Tower")
    assert found["logit"] == pytest.approx(own.logit)
    assert [row["contribution"] for row in found["contributions"]] == pytest.approx(list(own.table["contribution"]))
    assert found["left_out"] == {}


def test_other_tools_answer(lm: sc.LM, tmp_path: Path) -> None:
    told = asked(lm, "explain", prompt="The bridge", tables=["tokens"], rows=1).structured_content
    assert len(told["tokens"]) == 1
    assert told["left_out"]["tokens"] == len(lm.encode("The bridge")) - 1
    assert "words" in told["left_out"]
    assert "words" not in told
    told = asked(
        lm, "explain", prompt="The bridge", target=" Golden", versus=" Tower", tables=["tokens"]
    ).structured_content
    own = sc.attribute(sc.freeze(lm, "The bridge"), " Golden", versus=" Tower")
    assert told["logit"] == pytest.approx(own.logit)
    layers = asked(lm, "layers", prompt="The bridge", tables=["first_seen"]).structured_content
    assert layers["left_out"]["layers"] > 0
    steered = asked(lm, "steer", prompt="The bridge", concept=PROMPT, layer=0, strength=1.0, tokens=2)
    assert not steered.is_error, steered.content
    assert {row["form"] for row in steered.structured_content["steered"]} == {"unsteered", "activation"}
    study = asked(lm, "study", prompts=[PROMPT], out=str(tmp_path / "s"), analyses=["reconstruction"])
    assert study.structured_content["missing"] == 0
    assert sc.Study.open(tmp_path / "s").to_pandas()["text"].tolist() == [PROMPT]


def test_an_error_is_one_line(lm: sc.LM) -> None:
    found = asked(lm, "attribute", prompt=PROMPT, target=" Nowhereville")
    assert found.is_error
    assert "A target is one token of the vocabulary" in found.content[0].text
    assert "Traceback" not in found.content[0].text
    assert asked(lm, "explain", prompt="The bridge", tables=["nothing"]).is_error


def test_tables_are_cut() -> None:
    found = {"logit": 1.0, "a": [{"x": 1}, {"x": 2}], "b": [{"y": 1}]}
    assert cut(found, 1) == {"logit": 1.0, "a": [{"x": 1}], "b": [{"y": 1}], "left_out": {"a": 1}}
    assert cut(found, 5, ["b"]) == {"logit": 1.0, "b": [{"y": 1}], "left_out": {"a": 2}}
    with pytest.raises(BadArgument, match="are among a, b"):
        cut(found, 5, ["c"])
    with pytest.raises(BadArgument, match="rows = 0"):
        cut(found, 0)


@pytest.mark.slow
def test_the_command_serves_on_its_streams() -> None:
    from mcp import StdioServerParameters
    from mcp.client import Client

    async def ask() -> Any:
        main = "from secant.cli import main; main()"
        command = StdioServerParameters(command=sys.executable, args=["-c", main, "mcp"], env=dict(os.environ))
        async with Client(command) as client:
            with anyio.fail_after(120):
                return await client.call_tool("attribute", {"prompt": PROMPT})

    found = anyio.run(ask)
    assert not found.is_error
    assert found.structured_content["target"] == " Golden"
