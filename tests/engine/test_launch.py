"""Servers as child processes: the command they are started with, that they come back, and that none outlives its parent.

The command is a stand-in that listens where vLLM would and has a child of its own, as vLLM has; the real one is in
`test_real_server.py`.
"""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from agentvision.engine._keeper import SHARED_MEMORY
from agentvision.engine.launch import KEEPER, ServerPlan, Servers
from agentvision.engine.memory import PREFIX
from agentvision.engine.types import EngineError, EngineLost
from agentvision.engine.wire import Wire

ROOT = Path(__file__).parents[2]
STAND_IN = """
import asyncio, subprocess, sys
engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[2], "a").write(f"{engine.pid}\\n")
print("the engine is", engine.pid, flush=True)
async def serve(reader, writer):
    while await reader.readuntil(b"\\r\\n\\r\\n"):
        writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n")
async def main():
    async with await asyncio.start_unix_server(serve, sys.argv[1]) as server:
        await server.serve_forever()
asyncio.run(main())
"""


@dataclass(frozen=True)
class StandIn(ServerPlan):
    """`model` is the file that the engines' process ids go to."""

    code: str = STAND_IN

    def command(self, socket: Path) -> list[str]:
        return [sys.executable, "-c", self.code, str(socket), self.model]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second where it ends as its file is read
        return False


def engines(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()] if file.exists() else []


async def until(condition, *, within_s=60.0):
    stop = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < stop, "it did not come to pass"
        await asyncio.sleep(0.05)
    return value


async def answers(url: str) -> bool:
    wire = Wire(url)
    try:
        return (await wire.call("GET", "/health", timeout_s=10)).status == 200
    except EngineLost:
        return False
    finally:
        await wire.close()


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_has_what_exact_rollouts_need_and_takes_any_flag_of_vllm():
    plan = ServerPlan(
        "path/to/model",
        flags={
            "tensor_parallel_size": 2,
            "enforce-eager": True,
            "enable-prefix-caching": False,
            "limit_mm_per_prompt": {"image": 4},
            "weight_transfer_config": None,
            "served-model-name": "mine",
        },
    )
    words = " ".join(plan.command(Path("/s/0.sock"))[1:])
    assert words.startswith("-m vllm.entrypoints.openai.api_server --model path/to/model --uds /s/0.sock")
    for wanted in (
        "--enable-scale-out",
        "--enable-prompt-tokens-details",
        "--logprobs-mode processed_logprobs",
        "--generation-config vllm",
        "--worker-extension-cls agentvision.engine.worker.WeightReader",
        "--tensor-parallel-size 2",
        "--enforce-eager",
        "--no-enable-prefix-caching",
        '--limit-mm-per-prompt {"image": 4}',
        "--served-model-name mine",
    ):
        assert wanted in words
    assert "weight-transfer" not in words and "policy" not in words


def test_devices_are_counted_within_those_that_the_run_sees(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-5a, 6")
    plan = ServerPlan("m", count=3, devices=("0,1", "2", "GPU-7b"))
    assert [plan.environment(k)["CUDA_VISIBLE_DEVICES"] for k in range(3)] == ["4,GPU-5a", "6", "GPU-7b"]
    with pytest.raises(EngineError, match="no device 3"):
        ServerPlan("m", devices=("3",)).environment(0)


def test_each_server_has_its_devices_and_none_asks_for_a_key_of_the_surroundings(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("VLLM_API_KEY", "s3cret")
    plan = ServerPlan("m", count=2, devices=("0,1", "2,3"), env={"OMP_NUM_THREADS": "3"})
    for index, devices in enumerate(["0,1", "2,3"]):
        env = plan.environment(index)
        assert (env["CUDA_VISIBLE_DEVICES"], env["OMP_NUM_THREADS"], env["VLLM_SERVER_DEV_MODE"]) == (devices, "3", "1")
        assert "VLLM_API_KEY" not in env


def test_a_server_is_no_rank_of_the_launchers_that_started_the_trainer(monkeypatch):
    told = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK"]
    told += ["ROLE_NAME", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
    told += ["TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"]
    for name in told:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    env = ServerPlan("m", env={"MASTER_PORT": "29500"}).environment(0)
    assert env["TORCH_COMPILE_DISABLE"] == "1", "what is not the launcher's is kept"
    assert env["MASTER_PORT"] == "29500", "what the plan says is said on purpose"
    assert {*told} & {*env} == {"MASTER_PORT"}


@pytest.mark.parametrize("options", [{"count": 0}, {"count": 3, "devices": ("0", "1")}])
def test_a_plan_that_cannot_be_is_refused(options):
    with pytest.raises(EngineError):
        ServerPlan("m", **options)


# --- their lives ----------------------------------------------------------------------------------------------------


async def test_they_answer_on_sockets_of_this_user_alone_and_end_with_all_their_processes(tmp_path):
    servers = Servers(StandIn(str(tmp_path / "pids"), count=2, logs=tmp_path / "logs"))
    urls = await servers.start()
    assert [await answers(url) for url in urls] == [True, True]
    folder = Path(urls[0].removeprefix("unix://")).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    assert "the engine is" in (tmp_path / "logs" / "server-1.log").read_text()
    pids = engines(tmp_path / "pids")
    assert len(pids) == 2 and all(map(alive, pids))
    await servers.close()
    assert not any(map(alive, pids)) and not folder.exists()


async def test_one_that_dies_is_started_again_at_its_address_a_bounded_number_of_times(tmp_path, caplog):
    servers = Servers(StandIn(str(tmp_path / "pids"), restarts=1, logs=tmp_path))
    (url,) = await servers.start()
    try:
        for life in (1, 2):
            (engine,) = await until(lambda life=life: engines(tmp_path / "pids")[life - 1 : life])
            server = int(Path(f"/proc/{engine}/stat").read_text().rpartition(")")[2].split()[1])
            while not await answers(url):
                await asyncio.sleep(0.05)
            os.kill(server, signal.SIGKILL)
            await until(lambda engine=engine: not alive(engine))  # what it left behind ends too
        await until(lambda: "is not started again" in caplog.text)
        assert len(engines(tmp_path / "pids")) == 2
    finally:
        await servers.close()


async def test_one_that_hangs_is_started_again(tmp_path):
    servers = Servers(StandIn(str(tmp_path / "pids"), hang_s=0.5, logs=tmp_path))
    await servers.start()
    try:
        (engine,) = engines(tmp_path / "pids")
        server = int(Path(f"/proc/{engine}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(server, signal.SIGSTOP)
        await until(lambda: len(engines(tmp_path / "pids")) >= 2)
        assert not alive(engine) and not alive(server)
    finally:
        await servers.close()


async def test_one_that_ends_as_it_starts_says_so_with_the_end_of_its_log(tmp_path):
    plan = StandIn("", logs=tmp_path, code="print('no such model: ' + 'x' * 3); raise SystemExit(3)")
    with pytest.raises(EngineError, match=r"server 0 ended with 3 as it started(?s:.*)no such model: xxx"):
        await Servers(plan).start()


async def test_a_log_that_is_gone_with_the_servers_is_not_named():
    with pytest.raises(EngineError, match=r"ended with 3 as it started\. The end of its log:\n(?s:.*)no such model"):
        await Servers(StandIn("", code="print('no such model'); raise SystemExit(3)")).start()


async def test_one_that_never_answers_is_ended_at_the_deadline(tmp_path):
    (tmp_path / "server-0.log").write_text("loading\n")  # what it would say, were it given the time
    plan = StandIn("", logs=tmp_path, start_s=0.5, code="import time; time.sleep(600)")
    with pytest.raises(EngineError, match=r"did not answer within 0\.5 s(?s:.*)loading"):
        await Servers(plan).start()


STUBBORN = """
import os, signal, sys, time
from multiprocessing.shared_memory import SharedMemory
signal.signal(signal.SIGTERM, signal.SIG_IGN)
memory = SharedMemory(create=True, size=1)
open(sys.argv[1] + "-memory", "w").write(memory.name)
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(600)
"""


async def test_a_keeper_that_is_asked_twice_to_end_ends_its_group_all_the_same(tmp_path):
    file = tmp_path / "pid"
    command = [sys.executable, "-I", str(KEEPER), str(tmp_path), PREFIX, sys.executable, "-c", STUBBORN, str(file)]
    keeper = subprocess.Popen(command, stdin=subprocess.PIPE)
    (pid,) = await until(lambda: engines(file))
    memory = SHARED_MEMORY / Path(f"{file}-memory").read_text()
    assert memory.exists()
    for _ in range(4):  # its child ignores the first, so it is at its clean-up for the whole of the grace
        keeper.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.4)
    assert await asyncio.to_thread(keeper.wait, 60) == 128 + signal.SIGTERM
    assert not alive(pid)
    assert not memory.exists(), "SIGKILL leaves nobody of the group to remove it"
    assert file.exists(), "the folder is its parent's while there is one"


async def test_closing_while_one_is_started_again_leaves_nothing(tmp_path):
    """The keeper of a server may be at any of its steps: stopping the old one, or waiting for the new."""
    servers = Servers(StandIn(str(tmp_path / "pids"), hang_s=0.3, logs=tmp_path))
    await servers.start()
    (server,) = servers._servers
    stop, stopping = server.stop, threading.Event()

    async def told():
        stopping.set()
        await stop()

    server.stop = told
    (engine,) = engines(tmp_path / "pids")
    os.kill(int(Path(f"/proc/{engine}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGSTOP)
    await until(stopping.is_set)
    keepers = servers._keepers
    await servers.close()
    assert all(keeper.done() for keeper in keepers) and server.pid is None
    assert not any(map(alive, engines(tmp_path / "pids")))


async def test_one_that_is_stopped_as_it_starts_is_not_waited_for(tmp_path):
    plan = StandIn("", logs=tmp_path, start_s=600, code="import time; time.sleep(600)")
    servers = Servers(plan)
    starting = asyncio.create_task(servers.start())
    await until(lambda: any(servers.pids))
    await servers.close()
    with pytest.raises(EngineError, match="as it started"):
        await starting


async def test_one_whose_keeper_is_killed_is_started_again_and_the_old_one_ends(tmp_path):
    servers = Servers(StandIn(str(tmp_path / "pids"), logs=tmp_path))
    (url,) = await servers.start()
    try:
        (engine,) = engines(tmp_path / "pids")
        (keeper,) = servers.pids
        os.kill(keeper, signal.SIGKILL)
        await until(lambda: len(engines(tmp_path / "pids")) == 2)
        assert not alive(engine)
        while not await answers(url):
            await asyncio.sleep(0.05)
    finally:
        await servers.close()
    assert not any(map(alive, engines(tmp_path / "pids")))


PARENT = """
import asyncio, sys
from pathlib import Path
from agentvision.engine.memory import new_memory
from tests.engine.test_launch import StandIn, Servers
async def main():
    servers = Servers(StandIn(sys.argv[1], count=2, logs=Path(sys.argv[2])))
    urls = await servers.start()
    with new_memory(1) as memory:
        print(urls[0].removeprefix("unix://"), memory.name, flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


async def test_nothing_is_left_when_the_parent_is_killed(tmp_path):
    """Nor when all that stands in its group is, as with Python's own guard of shared memory."""
    command = [sys.executable, "-c", PARENT, str(tmp_path / "pids"), str(tmp_path)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True)
    assert parent.stdout is not None
    socket, name = (await asyncio.to_thread(parent.stdout.readline)).decode().split()
    pids = engines(tmp_path / "pids")
    assert len(pids) == 2 and all(map(alive, pids))
    folder, memory = Path(socket).parent, SHARED_MEMORY / name
    assert folder.exists() and memory.exists()
    os.killpg(parent.pid, signal.SIGKILL)
    parent.wait()
    await until(lambda: not any(map(alive, pids)))
    await until(lambda: not folder.exists() and not memory.exists())


INTERRUPTED = """
import asyncio, os, signal, sys, time
from pathlib import Path
from agentvision._workers import ctrl_c_raises, run_sync
from tests.engine.test_launch import STAND_IN, StandIn, Servers

folder, delays = Path(sys.argv[1]), [float(word) for word in sys.argv[2:]]

MUTE = 'import os, sys, time; print(os.getpid(), file=open(sys.argv[2], "a")); time.sleep(600)'

async def begin(code):
    with ctrl_c_raises():
        run_sync(Servers(StandIn(str(folder / "pids"), count=2, logs=folder, code=code)).start)
    time.sleep(0.3)  # as where a model is loaded
    await asyncio.sleep(600)

def child(code):
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        asyncio.run(begin(code))
    except KeyboardInterrupt:
        os._exit(130)
    finally:
        os._exit(1)  # whatever happens, it is not to go on with the loop below

children = []
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests are run in the background it is ignored
for number in range(len(delays)):
    if not (pid := os.fork()):
        child(MUTE if number % 2 else STAND_IN)
    children.append(pid)
began = time.monotonic()
for pid, delay in zip(children, delays):
    time.sleep(max(0, began + delay - time.monotonic()))
    os.kill(pid, signal.SIGINT)
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children], flush=True)
"""


async def test_an_interrupt_at_any_moment_of_the_start_leaves_nothing(tmp_path):
    """Before there is a server, while they start (half of them for ever), and when they have."""
    count = 12
    with tempfile.TemporaryDirectory(prefix="av-") as place:  # sockets want a short path
        delays = [f"{0.05 + 0.1 * k:g}" for k in range(count)]
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", INTERRUPTED, str(tmp_path), *delays],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": place},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stdout.strip() == str([130] * count), done.stderr
        await until(lambda: not any(map(alive, engines(tmp_path / "pids"))))
        await until(lambda: not list(Path(place).iterdir()))
