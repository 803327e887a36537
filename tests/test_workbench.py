"""The workbench: access, refused requests, stages that equal the page's, jobs, and the answers of both networks."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from helpers import heeding_signals
from hostile import hostile_model
from starlette.testclient import TestClient
from typer.testing import CliRunner

import secant as sc
from secant import memory
from secant.analyses.explain import case_of, of_case
from secant.analyses.stages import STAGES, Forecast
from secant.cli import app
from secant.errors import BadArgument, TooLarge
from secant.linearize.points import ActivationGraph
from secant.workbench import session as sessions
from secant.workbench.asked import Asked
from secant.workbench.guard import BODY
from secant.workbench.jobs import CANCELLED, DONE, FAILED, OFFERED, Cancelled, Job
from secant.workbench.server import application
from secant.workbench.session import Session
from secant.workbench.tasks import KINDS, Model, Work

PROMPT = "The bridge out of Marin is the"
TOKEN, PORT = "a-token-that-nobody-guesses", 4321
ORIGIN = f"http://127.0.0.1:{PORT}"


def client_of(session: Session, **headers: str) -> TestClient:
    app = application(session, token=TOKEN, host="127.0.0.1", port=PORT)
    return TestClient(app, base_url=ORIGIN, headers={"origin": ORIGIN, **headers})


@pytest.fixture(scope="module")
def client(lm: sc.LM) -> Iterator[TestClient]:
    """A browser that has opened the address, of a session that computes answers, and all else when it is asked for."""
    session = Session({"tiny": Model(lm, 20), "other": Model(lm, 64)}, runs=3)
    with pytest.MonkeyPatch.context() as patch, client_of(session) as client:
        patch.setattr(sessions, "PATIENCE", 0.0)
        assert client.get("/", params={"token": TOKEN}, follow_redirects=False).status_code == 303
        yield client


def explained(client: TestClient, prompt: str = PROMPT, model: str = "tiny", **more: Any) -> dict[str, Any]:
    """The state of a run that is asked for."""
    answer = client.post("/api/explain", json={"model": model, "prompt": prompt, **more})
    assert answer.status_code == 201, answer.text
    return answer.json()


def until(found: Callable[[], Any], seconds: float = 60) -> Any:
    """What a function returns, as soon as it is anything."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)
    return value


def finished(client: TestClient, job: dict[str, Any]) -> dict[str, Any]:
    """A job that is over, with its result."""

    def over() -> Any:
        found = client.get(f"/api/jobs/{job['id']}").json()
        return found if found["state"] in (DONE, FAILED, CANCELLED) else None

    return until(over)


def complete(client: TestClient, run: str) -> dict[str, Any]:
    """A run whose stages are all over."""

    def over() -> Any:
        found = client.get(f"/api/runs/{run}").json()
        return found if all(job["state"] in (DONE, FAILED, CANCELLED, OFFERED) for job in found["jobs"]) else None

    return until(over)


def in_full(client: TestClient, run: str) -> dict[str, Any]:
    """A run, all of whose stages are asked for."""
    for stage in complete(client, run)["stages"]:
        finished(client, client.post(f"/api/runs/{run}/stage", json={"name": stage["name"]}).json())
    return complete(client, run)


def result(client: TestClient, run: str, kind: str, **given: Any) -> dict[str, Any]:
    """The result of something that is asked for."""
    answer = client.post(f"/api/runs/{run}/{kind}", json=given)
    assert answer.status_code == 202, answer.text
    job = finished(client, answer.json())
    assert job["state"] == DONE, job["says"]
    return job["result"]


# ------------------------------------------------------------------------------------------- who is let in


def test_only_the_address_with_the_token_opens_it(client: TestClient) -> None:
    client.cookies.clear()
    try:
        for path in ("/", "/api/runs", "/workbench.js", "/style/page.css", "/?token=wrong", f"/api/runs?token={TOKEN}"):
            answer = client.get(path, follow_redirects=False)
            assert answer.status_code == 403
            assert TOKEN not in answer.text
        assert client.post("/api/explain", json={"model": "tiny", "prompt": PROMPT}).status_code == 403
    finally:
        answer = client.get(f"/?token={TOKEN}", follow_redirects=False)
    (cookie,) = answer.headers.get_list("set-cookie")
    assert answer.headers["location"] == "/"
    assert cookie.startswith(f"secant_{PORT}={TOKEN};")
    assert "httponly" in cookie.lower()
    assert "samesite=strict" in cookie.lower()
    assert client.get("/").status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:4321", ""])
def test_other_hosts_are_refused(client: TestClient, host: str) -> None:
    """A name of somebody else that resolves to this computer."""
    assert client.get("/api/runs", headers={"host": host}).status_code == 400


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", f"http://127.0.0.1:{PORT + 1}", f"https://127.0.0.1:{PORT}", ""]
)
def test_other_origins_are_refused(client: TestClient, origin: str) -> None:
    answer = client.post("/api/explain", json={"model": "tiny", "prompt": PROMPT}, headers={"origin": origin})
    assert answer.status_code == 403


def test_forms_of_other_types_are_refused(client: TestClient) -> None:
    body = json.dumps({"model": "tiny", "prompt": PROMPT})
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert client.post("/api/explain", content=body, headers={"content-type": kind}).status_code == 415


def test_headers_of_every_answer(client: TestClient) -> None:
    for path in ("/", "/workbench.js", "/api/choices", "/nowhere"):
        headers = client.get(path).headers
        allowed = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert allowed["default-src"] == "'none'"
        assert allowed["script-src"] == allowed["style-src"] == allowed["connect-src"] == "'self'"
        assert allowed["require-trusted-types-for"] == "'script'"
        assert allowed["frame-ancestors"] == "'none'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers


def test_its_scripts_never_turn_text_into_html(client: TestClient) -> None:
    for path in ("/", "/workbench.js"):
        text = client.get(path).text
        for way in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "new Function", "srcdoc"):
            assert way not in text


# ------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": "tiny"}, "A request must have all of its fields; got none called prompt."),
        ({"model": "/etc/passwd", "prompt": "a"}, "Models here are tiny, other; got '/etc/passwd'."),
        ({"model": "tiny", "prompt": ""}, "prompt has 1 to 32768 characters; got 0."),
        ({"model": "tiny", "prompt": "a" * 40_000}, "prompt has 1 to 32768 characters; got 40000."),
        ({"model": "tiny", "prompt": "a", "convention": "no"}, "A convention is one of"),
        ({"model": "tiny", "prompt": "a", "baseline": "no"}, "A baseline is one of"),
        ({"model": "tiny", "prompt": "a", "chat": 1}, "chat is true or false"),
        ({"model": "tiny", "prompt": "a", "steps": 9}, "A request has the fields model, prompt"),
        ({"model": "tiny", "prompt": "\ud800"}, "prompt is Unicode text"),
        ([], "A request is a JSON object; got"),
    ],
)  # fmt: skip
def test_requests_that_are_refused(client: TestClient, given: Any, said: str) -> None:
    answer = client.post("/api/explain", content=json.dumps(given), headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(said)
    assert "\n" not in answer.json()["error"]


def test_bodies_have_a_bound(client: TestClient) -> None:
    long = b"[" + b" " * BODY + b"]"
    kind = {"content-type": "application/json"}
    assert client.post("/api/explain", content=long, headers=kind).status_code == 413
    pieces = (long[i : i + 1000] for i in range(0, len(long), 1000))  # its length is not said before
    assert client.post("/api/explain", content=pieces, headers=kind).status_code == 413
    assert client.post("/api/explain", content=b"[" * 5000, headers=kind).status_code == 400
    assert client.post("/api/explain", content=b"\xff", headers=kind).status_code == 400


def test_what_is_not_there(client: TestClient) -> None:
    for path in ("/api/runs/none", "/api/jobs/99999", "/api/runs/none/parts/answer", "/style/other.css"):
        assert client.get(path).status_code == 404
    for path in ("/api/runs/none/stage", "/api/jobs/99999/cancel"):
        assert client.post(path, json={"name": "answer"}).status_code == 404
    run = explained(client)["run"]
    assert client.post(f"/api/runs/{run}/nonsense", json={}).status_code == 404
    assert client.post(f"/api/runs/{run}/stage", json={"name": "nonsense"}).status_code == 400


def test_long_prompts_are_refused_before_any_work(client: TestClient) -> None:
    found = complete(client, explained(client, "the " * 30)["run"])
    answer, *others = found["jobs"]
    assert answer["state"] == FAILED
    assert answer["says"].startswith("A prompt has at most 20 tokens here; got 3")
    assert {job["state"] for job in others} == {CANCELLED}


# ------------------------------------------------------------------------------------------- what is computed


@pytest.mark.slow
def test_all_stages_are_the_offline_page(client: TestClient, lm: sc.LM) -> None:
    """Every table and everything that is said, as `secant explain --layers --out` writes it; and so is its export."""
    run = explained(client, model="other")["run"]
    state = in_full(client, run)
    assert {job["state"] for job in state["jobs"]} == {DONE}
    assert state["layers"] == 2
    found: dict[str, dict[str, Any]] = {"about": {}, "tables": {}, "described": {}}
    for stage in state["stages"]:
        part = client.get(f"/api/runs/{run}/parts/{stage['name']}").json()
        for name, own in found.items():
            own |= part[name]
    case = case_of(
        lm, PROMPT, target=None, k=4, top=8, convention=None, precision=None, seed=0, origin=None,
        baseline="vocabulary", nulls={},
    )  # fmt: skip
    wanted = of_case(case, layers=True).contents()
    for contents in (found, wanted):
        contents["about"].pop("how")
    assert found == json.loads(json.dumps(wanted))
    job = client.post(f"/api/runs/{run}/page", json={}).json()
    assert finished(client, job)["state"] == DONE
    answer = client.get(f"/api/jobs/{job['id']}/report.html")
    assert answer.headers["content-disposition"] == 'attachment; filename="report.html"'
    assert answer.headers["content-security-policy"].startswith("sandbox;")
    exported = json.loads(answer.text.partition('id="data">')[2].partition("</script>")[0])
    exported["about"].pop("how")
    assert exported == found


def test_a_target_and_a_convention(client: TestClient, lm: sc.LM) -> None:
    run = explained(client, target="Tower", convention="up", baseline="none")["run"]
    for name in ("conventions", "lens", "versus"):
        job = client.post(f"/api/runs/{run}/stage", json={"name": name}).json()
        assert finished(client, job)["state"] == DONE
    about = client.get(f"/api/runs/{run}/parts/answer").json()["about"]
    own = sc.attribute(sc.freeze(lm, PROMPT, convention="up"), "Tower", baseline="none")
    assert (about["target"], about["convention"], about["baseline"]) == ("Tower", "up", None)
    assert about["logit"] == pytest.approx(own.logit, abs=1e-12)
    page = sc.explain(lm, PROMPT, target="Tower", convention="up", baseline="none")
    assert page.attribution.logit == own.logit
    assert page.lens is not None
    assert page.lens.target == "Tower"
    versus = client.get(f"/api/runs/{run}/parts/versus").json()["tables"]["versus"]["versus"]["texts"]
    assert "Tower" not in versus
    assert len(versus) == 4
    lost = page.sensitivity.effects
    assert lost == sc.sensitivity(page.run, "Tower", baseline="none").effects


def test_a_target_that_is_no_token(client: TestClient) -> None:
    found = complete(client, explained(client, target="no such token")["run"])
    assert found["jobs"][0]["state"] == FAILED
    assert "no such token" in found["jobs"][0]["says"]


def test_a_question_is_answered_once(client: TestClient) -> None:
    """The same question is the same run, and nothing of it is computed again."""
    one = explained(client, "The bridge in London")
    first = complete(client, one["run"])
    other = explained(client, "The bridge in London")
    assert other["run"] == one["run"]
    assert [job["id"] for job in other["jobs"]] == [job["id"] for job in first["jobs"]]


def test_runs_that_were_not_used_for_long_are_forgotten(client: TestClient) -> None:
    runs = [explained(client, prompt)["run"] for prompt in ("The", "The bridge", "The bridge in")]
    complete(client, runs[2])
    explained(client, "The")  # is used again
    runs.append(explained(client, "In Venice")["run"])
    there = [run["run"] for run in client.get("/api/runs").json()]
    assert there == [runs[3], runs[0], runs[2]]
    assert client.get(f"/api/runs/{runs[1]}").status_code == 404


def test_an_ablation_has_both_answers(client: TestClient, lm: sc.LM) -> None:
    run = explained(client)["run"]
    complete(client, run)
    frozen = sc.freeze(lm, PROMPT)
    for what, position in ((3, None), ("layers.1.attn.heads.2", None), ("layers.0.mlp", 5)):
        own = sc.ablate(frozen, what, "mean", position=position)
        found = result(client, run, "ablation", what=what, by="mean", position=position)
        assert (found["frozen"], found["real"]) == pytest.approx(own.change())
        assert [row["token"] for row in found["rows"]] == own.to_pandas()["token"].tolist()
        assert [row["real_probability"] for row in found["rows"]] == pytest.approx(own.to_pandas()["real_probability"])
    answer = client.post(f"/api/runs/{run}/ablation", json={"what": "layers.9.mlp", "by": "zero"})
    job = finished(client, answer.json())
    assert job["state"] == FAILED
    assert "layers.9.mlp" in job["says"]


def test_versus_any_token(client: TestClient, lm: sc.LM) -> None:
    run = explained(client)["run"]
    complete(client, run)
    token = lm.text(sc.freeze(lm, PROMPT).prediction[-1].id)
    found = result(client, run, "versus", token=token)
    assert found == {"stage": "versus", "number": 5}
    part = client.get(f"/api/runs/{run}/parts/versus").json()
    assert part["tables"]["versus"]["versus"]["texts"][-1] == token
    own = sc.attribute(sc.freeze(lm, PROMPT), None, token)
    assert part["about"]["totals"][5] == pytest.approx(own.total, abs=1e-12)
    assert result(client, run, "versus", token=token)["number"] == 5
    own_target = client.post(f"/api/runs/{run}/versus", json={"token": "Golden"})
    assert finished(client, own_target.json())["state"] == FAILED


def test_steering_has_both_continuations(client: TestClient, lm: sc.LM) -> None:
    run = explained(client)["run"]
    given = {"concept": "In Venice people cross", "layer": 1, "strength": 0.7, "form": "mixture", "tokens": 3}
    found = result(client, run, "steering", **given)
    with sc.steer(lm, "In Venice people cross", layer=1, strength=0.7), torch.no_grad():
        steered = lm.logits(lm.encode(PROMPT))[-1].argmax()
    assert found["unsteered"]["text"].strip().startswith("Golden")
    assert found["steered"]["text"].strip().startswith(lm.text(int(steered)))
    for wrong in ({"layer": 99}, {"strength": 1.5}):
        job = finished(client, client.post(f"/api/runs/{run}/steering", json=given | wrong).json())
        assert job["state"] == FAILED
    assert client.post(f"/api/runs/{run}/steering", json=given | {"tokens": 10**6}).status_code == 400
    assert client.post(f"/api/runs/{run}/steering", json=given | {"strength": float("1e9")}).status_code == 400


@pytest.mark.slow
def test_hostile_texts_are_data() -> None:
    """Of prompts and tokenizers: they are JSON, in which no character means anything to HTML."""
    lm, prompt = hostile_model()
    with client_of(Session({"<b>": Model(lm, 64)})) as client:
        client.get(f"/?token={TOKEN}")
        run = explained(client, prompt, "<b>")["run"]
        state = in_full(client, run)
        assert {job["state"] for job in state["jobs"]} == {DONE}
        paths = [f"/api/runs/{run}", "/api/runs", "/api/choices"]
        paths += [f"/api/runs/{run}/parts/{stage['name']}" for stage in state["stages"]]
        for path in paths:
            answer = client.get(path)
            assert answer.headers["content-type"] == "application/json"
            assert not set("<>&") & set(answer.text)
        parts = client.get(f"/api/runs/{run}/parts/answer").json()
        assert parts["about"]["model"] == lm.name


# ------------------------------------------------------------------------------------------- jobs


FAR = [600]
"""From how many of 1,000 the stage `lens` of `slow` reports its progress."""


@pytest.fixture
def slow(lm: sc.LM, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TestClient, threading.Event]]:
    """A session whose stage `lens` reports progress until it may go on."""
    go = threading.Event()
    plain = STAGES["lens"]

    def held(case: Any) -> Any:
        step = FAR[0]
        while not go.is_set():
            step += 1
            case._progress("lens", step, 1000)
            time.sleep(0.01)
        return plain.tables(case)

    monkeypatch.setattr(sessions, "PATIENCE", 60.0)
    monkeypatch.setitem(STAGES, "lens", type(plain)(plain.name, plain.label, held, plain.about, plain.plan))
    with client_of(Session({"tiny": Model(lm, 20)}, queue=3)) as client:
        client.get(f"/?token={TOKEN}")
        yield client, go
        go.set()


def running(client: TestClient, run: str) -> dict[str, Any]:
    def lens() -> Any:
        jobs = client.get(f"/api/runs/{run}").json()["jobs"]
        (job,) = [job for job in jobs if job["name"] == "lens"]
        return job if job["state"] == "running" and job["done"] > 2 else None

    return until(lens)


def test_progress_estimate_and_cancel(slow: tuple[TestClient, threading.Event]) -> None:
    client, go = slow
    run = explained(client)["run"]
    job = running(client, run)
    assert (job["says"], job["of"]) == ("lens", 1000)
    assert job["estimate"] > 0
    assert job["seconds"] > 0
    client.post(f"/api/jobs/{job['id']}/cancel", json={})
    assert finished(client, job)["state"] == CANCELLED
    go.set()
    found = complete(client, run)  # the others go on
    assert sum(own["state"] == DONE for own in found["jobs"]) == len(STAGES) - 1
    again = client.post(f"/api/runs/{run}/stage", json={"name": "lens"}).json()
    assert again["id"] != job["id"]
    assert finished(client, again)["state"] == DONE


class Fuse(Job):
    """A job that is cancelled at one of its stopping points, if it comes so far."""

    count, last = 0, 10**9

    def check(self) -> None:
        self.count += 1
        self.stopped = self.count > self.last
        super().check()


KINDS_OF_WORK: dict[str, dict[str, Any]] = {
    **{name: {} for name in STAGES if name != "versus"},
    "versus": {"token": " Brooklyn"},
    "ablation": {"what": "layers.0.mlp", "by": "zero", "position": None},
    "steering": {"concept": "London", "layer": 1, "strength": 0.5, "form": "mixture", "tokens": 3},
}


@pytest.mark.slow
def test_every_kind_of_work_can_be_cancelled_and_begins_again(lm: sc.LM) -> None:
    """In the middle, whether it reports progress or not; what is computed later is the same."""
    one, two = (Work(Asked("tiny", PROMPT), Model(lm, 20)) for _ in range(2))

    def done(work: Work, name: str, last: int = 10**9) -> tuple[Any, int]:
        kind = "stage" if name in STAGES else name
        job = Fuse(work.asked.id, kind, name, lambda job: None)
        job.last = last
        result = KINDS[kind][0](work, job, KINDS_OF_WORK[name])
        return (work.parts[name]["tables"] if kind == "stage" else result), job.count

    silent = []
    for name in KINDS_OF_WORK:
        whole, count = done(one, name)
        if count > 1:
            with pytest.raises(Cancelled):
                done(two, name, count // 2)
        else:
            silent.append(name)
        assert done(two, name)[0] == whole, name
    assert silent == ["image"]  # J is in memory


def test_only_the_worker_computes(lm: sc.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests for what is known of a run take no pass of their own: the server answers meanwhile."""
    threads, plain = [], ActivationGraph.of

    def noted(network: Any) -> ActivationGraph:
        threads.append(threading.current_thread().name)
        return plain(network)

    monkeypatch.setattr(ActivationGraph, "of", noted)
    with client_of(Session({"tiny": Model(lm, 20)})) as client:
        client.get(f"/?token={TOKEN}")
        run = explained(client)["run"]

        def answered() -> Any:
            found = client.get(f"/api/runs/{run}").json()
            return found if "answer" in found["parts"] else None

        assert until(answered)["layers"] == 2
        complete(client, run)
    assert set(threads) == {"secant worker"}


def test_what_waits_is_cancelled_at_once_and_the_queue_has_a_bound(slow: tuple[TestClient, threading.Event]) -> None:
    client, go = slow
    run = explained(client)["run"]
    running(client, run)
    asked = [client.post(f"/api/runs/{run}/ablation", json={"what": t, "by": "zero"}) for t in range(4)]
    assert [answer.status_code for answer in asked] == [202, 202, 202, 429]
    assert asked[3].json()["error"].startswith("At most 3 jobs wait; got one more.")
    client.post(f"/api/jobs/{asked[1].json()['id']}/cancel", json={})
    assert finished(client, asked[1].json())["state"] == CANCELLED
    go.set()
    assert [finished(client, asked[i].json())["state"] for i in (0, 2)] == [DONE, DONE]


def test_what_somebody_waits_for_goes_first(slow: tuple[TestClient, threading.Event]) -> None:
    """An answer goes before what is asked for, and both before the stages that are computed meanwhile."""
    client, go = slow
    first = explained(client)["run"]
    running(client, first)
    other = explained(client, "In London people")
    ablation = client.post(f"/api/runs/{first}/ablation", json={"what": 1, "by": "zero"}).json()
    go.set()
    finished(client, ablation)
    jobs = client.get(f"/api/runs/{other['run']}").json()["jobs"]
    assert [job["state"] == DONE for job in jobs].count(True) >= 1
    assert jobs[0]["state"] == DONE
    complete(client, first)


def test_work_that_nobody_waits_for_makes_way(
    slow: tuple[TestClient, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it has come far; and it begins again, once nobody waits."""
    client, go = slow
    monkeypatch.setattr(sys.modules[__name__], "FAR", [0])
    run = explained(client)["run"]
    job = running(client, run)
    ablation = client.post(f"/api/runs/{run}/ablation", json={"what": 1, "by": "zero"}).json()
    assert finished(client, ablation)["state"] == DONE
    assert running(client, run)["id"] == job["id"]
    go.set()
    assert finished(client, job)["state"] == DONE


def test_work_that_reports_nothing_makes_way_too(lm: sc.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it has taken half of its estimate."""
    plain, go, begun = STAGES["lens"], threading.Event(), []

    class Long(type(plain)):  # type: ignore[misc]
        def forecast(self, case: Any) -> Forecast:
            return Forecast(50.0, 1.0)

    def silent(case: Any) -> Any:
        begun.append(time.monotonic())
        while not go.is_set():
            memory.stopping_point()
            time.sleep(0.01)
        return plain.tables(case)

    monkeypatch.setattr(sessions, "PATIENCE", 60.0)
    monkeypatch.setitem(STAGES, "lens", Long(plain.name, plain.label, silent, plain.about, plain.plan))
    with client_of(Session({"tiny": Model(lm, 20)})) as client:
        client.get(f"/?token={TOKEN}")
        run = explained(client)["run"]
        until(lambda: begun)
        ablation = client.post(f"/api/runs/{run}/ablation", json={"what": 1, "by": "zero"}).json()
        assert finished(client, ablation)["state"] == DONE
        until(lambda: len(begun) == 2)  # and begins again
        go.set()
        assert all(job["state"] == DONE for job in complete(client, run)["jobs"])


def test_stages_that_take_long_are_offered(lm: sc.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "PATIENCE", 0.0)
    with client_of(Session({"tiny": Model(lm, 20)})) as client:
        client.get(f"/?token={TOKEN}")
        run = explained(client)["run"]

        def offered() -> Any:
            jobs = client.get(f"/api/runs/{run}").json()["jobs"]
            return jobs if {job["state"] for job in jobs} == {DONE, OFFERED} else None

        answer, *others = until(offered)
        assert answer["state"] == DONE
        assert all(job["state"] == OFFERED and job["estimate"] > 0 for job in others)
        job = client.post(f"/api/runs/{run}/stage", json={"name": "layers"}).json()
        assert finished(client, job)["state"] == DONE


def test_memory_is_forecast_before_work(lm: sc.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit fails with one line, and nothing of it is computed."""
    monkeypatch.setattr(sessions, "PATIENCE", 60.0)
    session = Session({"tiny": Model(lm, 20)})
    with client_of(session) as client:
        client.get(f"/?token={TOKEN}")
        run = explained(client)["run"]
        complete(client, run)
        monkeypatch.setattr("secant.workbench.tasks.free", lambda device: 1000.0)
        session.works[run].jobs["spectra"].state = CANCELLED
        session.works[run].parts.pop("spectra")
        job = client.post(f"/api/runs/{run}/stage", json={"name": "spectra"}).json()
        found = finished(client, job)
        assert found["state"] == FAILED
        assert found["says"].startswith("Spectra must fit in memory; got about ")
        assert "spectra" not in session.works[run].parts


def test_announcements_are_watched() -> None:
    seen = []
    with memory.watched(lambda *what: seen.append(what)):
        memory.announce("work", 1.0, 2.0, torch.device("cpu"))
    memory.announce("more", 1.0, 2.0, torch.device("cpu"))
    assert seen == [("work", 1.0, 2.0)]


def test_a_fault_is_one_line_and_the_worker_goes_on(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    run = explained(client)["run"]
    complete(client, run)

    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("one\ntwo")

    monkeypatch.setattr("secant.analyses.live.ablate", broken)
    job = finished(client, client.post(f"/api/runs/{run}/ablation", json={"what": 1, "by": "zero"}).json())
    assert job["says"] == "An unexpected error; got ValueError: one two."
    monkeypatch.undo()
    assert result(client, run, "ablation", what=1, by="zero")["what"] == "token 1"


def test_a_job_that_is_stopped_raises() -> None:
    job = Job("run", "stage", "lens", lambda job: None)
    job.progress("a", 1, 2)
    job.stopped = True
    with pytest.raises(BaseException, match=r"^$") as caught:
        job.progress("a", 2, 2)
    assert not isinstance(caught.value, Exception)


def test_listening_elsewhere_is_refused(lm: sc.LM) -> None:
    from secant.workbench.serving import serving

    for host, said in (
        ("0.0.0.0", "one address"),
        ("::", "one address"),
        ("example", "A host is"),
        ("192.0.2.1", "a free port"),
    ):
        with pytest.raises(BadArgument, match=said), serving([lm], host=host):
            pass


def test_models_of_one_name(lm: sc.LM, folder: Path) -> None:
    from secant.workbench.serving import _by_name

    assert list(_by_name([lm, lm], 9)) == ["tiny", "tiny (2)"]
    assert TooLarge("a", "b", "c.")


# ------------------------------------------------------------------------------------------- the command


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code", "said"), [(signal.SIGINT, 0, "ended"), (signal.SIGTERM, 143, "SIGTERM")])
def test_signals_end_it(folder: Path, number: int, code: int, said: str) -> None:
    """Also while somebody listens to its events, and while it computes."""
    command = [sys.executable, "-c", "from secant.cli import main; main()", "serve", "-m", str(folder)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heeding_signals
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{43}", address)
        origin = address.partition("/?")[0]
        try:
            with httpx2.Client(base_url=origin, headers={"origin": origin}, follow_redirects=True) as browser:
                assert browser.get(address).status_code == 200
                with browser.stream("GET", "/api/events") as events:
                    lines = events.iter_lines()
                    assert next(lines) == "event: jobs"
                    browser.post("/api/explain", json={"model": "tiny", "prompt": PROMPT})
                    assert any('"state": "running"' in line for line in lines)
                    start = time.monotonic()
                    process.send_signal(number)
                    process.wait(20)
        finally:
            process.kill()
        assert time.monotonic() - start < 10
        assert process.returncode == code
        errors = process.stderr.read() if process.stderr else ""
        assert said in errors.splitlines()[-1]
        assert "Traceback" not in errors


def test_without_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = CliRunner().invoke(app, ["serve"])
    assert result.exit_code == 2
    assert "pip install 'secant[workbench]'" in result.stderr


@pytest.mark.parametrize("options", [["--port", "99999"], ["--runs", "0"], ["--max-tokens", "0"]])
def test_options_that_are_refused(options: list[str]) -> None:
    result = CliRunner().invoke(app, ["serve", *options])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
