"""Prediction: every sample once, in order, however many processes and however little memory."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import child_environment
from torch import nn

from rescale_cli.core.predictions import Classifier, Image, Images, Preprocessing
from rescale_cli.errors import BadImage, BadInput, EnvironmentProblem, UsageError
from rescale_cli.evaluating import batches, ranks
from rescale_cli.evaluating.predict import RunOptions, predict
from rescale_cli.files import arrays
from rescale_cli.foreign_code import pick_device

N, C, SIDE = 23, 5, 12
PREPROCESSING = Preprocessing((SIDE, SIDE), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
CPU = RunOptions(device="cpu", batch_size=4, workers=0)
NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available")


class Net(nn.Module):
    """Convolutions, so that rows of a batch could differ if batches did."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, C)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(self.conv(images)).relu().mean((2, 3)))


def classifier(module: nn.Module | None = None, num_classes: int = C) -> Classifier:
    return Classifier((module or Net()).eval(), num_classes, "a test's", "it was given")


def pixels(number: int = N, side: int = SIDE) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(1).integers(0, 256, (number, side, side, 3), np.uint8)


class Reader:
    """Reads from an array, but as if each image were a file; some of them damaged."""

    def __init__(self, number: int = N, damaged: tuple[int, ...] = ()) -> None:
        self.array, self.damaged = pixels(number), damaged

    def __call__(self, index: int) -> Image:
        if index in self.damaged:
            raise BadImage(f"{index}.jpg cannot be decoded", saw="cut short", fix="fetch it again")
        return self.array[index]


def files(number: int = N, damaged: tuple[int, ...] = ()) -> Images:
    names = [f"{i}.jpg" for i in range(number)]
    labels = np.arange(number, dtype=np.int64) % C
    return Images(Reader(number, damaged), labels, None, names, "a folder")


def in_memory(number: int = N) -> Images:
    return replace(files(number), array=pixels(number))


def run(data: Images, options: RunOptions = CPU, **more: Any) -> Any:
    model = more.pop("model", None) or classifier()
    return predict(model, data, PREPROCESSING, options, **more)


def by_hand(data: Images, batch_size: int = 4) -> np.ndarray[Any, Any]:
    """The plainest loop: one batch after another."""
    model = classifier().module
    mean, std = (torch.tensor(v)[:, None, None] for v in (PREPROCESSING.mean, PREPROCESSING.std))
    images = torch.stack(
        [(torch.tensor(data.read(i)).permute(2, 0, 1) / 255 - mean) / std for i in range(len(data))]
    )
    with torch.no_grad():
        return torch.cat([model(part) for part in images.split(batch_size)]).numpy()


# ---------------------------------------------------------------- one process


@pytest.mark.parametrize("workers", [0, 2])
def test_logits_are_those_of_the_plainest_loop(workers: int) -> None:
    found = run(files(), replace(CPU, workers=workers))
    np.testing.assert_allclose(found.logits, by_hand(files()), rtol=1e-5, atol=1e-6)
    assert found.logits.dtype == np.float32
    assert found.labels.tolist() == [i % C for i in range(N)]
    assert found.names == [f"{i}.jpg" for i in range(N)]
    assert found.images_per_second > 0
    assert found.skipped == ()


def test_workers_change_nothing() -> None:
    alone = run(files())
    assert np.array_equal(alone.logits, run(files(), replace(CPU, workers=2)).logits)


def test_images_in_memory_go_in_whole_batches_and_need_no_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batches, "decoded", None)
    found = run(in_memory(), replace(CPU, workers=2))
    np.testing.assert_allclose(found.logits, by_hand(files()), rtol=1e-5, atol=1e-6)


def test_the_random_numbers_of_the_program_stay_as_they_are() -> None:
    model, before = classifier(), torch.get_rng_state()
    run(files(4), replace(CPU, workers=1), model=model)
    assert torch.equal(before, torch.get_rng_state())


def test_options_that_only_make_it_faster_change_little() -> None:
    plain = run(files()).logits
    for options in (
        replace(CPU, channels_last=True),
        replace(CPU, amp="bf16"),
        replace(CPU, batch_size=None),
    ):
        close = 0.05 if options.amp != "off" else 1e-4
        np.testing.assert_allclose(run(files(), options).logits, plain, atol=close)


def test_progress_ends_at_the_last_image_and_is_not_told_for_every_batch() -> None:
    told: list[tuple[int, int, float]] = []
    run(files(), replace(CPU, batch_size=1), progress=lambda *words: told.append(words))
    assert told[-1][:2] == (N, N)
    assert all(rate > 0 for _, _, rate in told)
    assert len(told) < N
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)


def test_logits_above_the_limit_lie_in_a_file_without_a_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = run(files()).logits
    monkeypatch.setattr(arrays, "IN_MEMORY", 10)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    spooled = run(files(damaged=(3, 11)), replace(CPU, batch_size=1, skip_bad=True)).logits
    one_by_one = by_hand(files(), 1)
    assert list(tmp_path.iterdir()) == []
    np.testing.assert_allclose(spooled, np.delete(one_by_one, (3, 11), 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(plain, one_by_one, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- images that cannot be read


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_counted_and_named(workers: int) -> None:
    bad = (2, 3, 7, 8, 9, 10, 22)
    with pytest.raises(BadInput, match=r"7 of 23 images in a folder cannot be read") as caught:
        run(files(damaged=bad), replace(CPU, workers=workers))
    assert "2.jpg cannot be decoded: cut short" in caught.value.saw
    assert "and 2 more" in caught.value.saw
    assert "--skip-bad" in caught.value.fix


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_left_out_when_asked_and_the_labels_go_with_the_rest(workers: int) -> None:
    bad = (0, 4, 5, 6, 7, 22)  # one whole batch among them
    found = run(files(damaged=bad), replace(CPU, workers=workers, skip_bad=True))
    good = [i for i in range(N) if i not in bad]
    assert found.skipped == tuple(f"{i}.jpg" for i in bad)
    assert found.labels.tolist() == [i % C for i in good]
    assert list(found.names) == [f"{i}.jpg" for i in good]
    np.testing.assert_allclose(found.logits, by_hand(files())[good], rtol=1e-4, atol=1e-5)


def test_a_data_set_without_a_single_readable_image_is_an_error_in_any_case() -> None:
    with pytest.raises(BadInput, match="3 of 3 images"):
        run(files(3, (0, 1, 2)), replace(CPU, skip_bad=True))
    with pytest.raises(BadInput, match="has no images"):
        run(files(0))


@pytest.mark.parametrize("workers", [0, 1])
def test_another_error_of_a_source_keeps_its_words_and_its_kind(workers: int) -> None:
    def gone(index: int) -> Image:
        raise EnvironmentProblem("the disk is gone", saw=f"image {index}", fix="plug it in")

    with pytest.raises(EnvironmentProblem, match="the disk is gone") as caught:
        run(replace(files(), read=gone), replace(CPU, workers=workers))
    assert (caught.value.saw, caught.value.fix) == ("image 0", "plug it in")


# ---------------------------------------------------------------- models that fail


class Short(Net):
    """Has memory for so many images."""

    def __init__(self, most: int, error: Callable[[], Exception]) -> None:
        super().__init__()
        self.most, self.error, self.sizes = most, error, list[int]()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(images))
        if len(images) > self.most:
            raise self.error()
        return super().forward(images)


SHORTAGES: dict[str, Callable[[], Exception]] = {
    "CUDA": lambda: torch.OutOfMemoryError("CUDA out of memory."),
    "CPU": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    "system": MemoryError,
}


@pytest.mark.parametrize("kind", SHORTAGES)
def test_short_memory_halves_the_batch_and_loses_nothing(kind: str) -> None:
    notes: list[str] = []
    model = Short(3, SHORTAGES[kind])
    found = run(files(), replace(CPU, batch_size=16), model=classifier(model), notes=notes.append)
    np.testing.assert_allclose(found.logits, by_hand(files(), 2), rtol=1e-4, atol=1e-5)
    assert [note.split(";")[0] for note in notes] == [
        f"out of memory with {size} images at once" for size in (16, 8, 4)
    ]
    assert model.sizes == [16, 8, 4, *[2] * 8, *[2] * 3, 1]


def test_memory_too_short_for_one_image_is_an_error() -> None:
    with pytest.raises(EnvironmentProblem, match="too little memory on cpu for one image"):
        run(files(), model=classifier(Short(0, SHORTAGES["CUDA"])))


def test_an_allocation_that_is_really_too_large_is_noticed() -> None:
    class Greedy(Net):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if len(images) > 1:
                torch.empty(1 << 50)
            return super().forward(images)

    found = run(files(5), model=classifier(Greedy()))
    np.testing.assert_allclose(found.logits, by_hand(files(5)), rtol=1e-4, atol=1e-5)


def test_a_preprocessing_with_other_channels_than_the_network_is_named() -> None:
    gray = replace(PREPROCESSING, mean=(0.5,), std=(0.5,))
    with pytest.raises(BadInput, match="images with 1 channel, but the network takes 3") as caught:
        predict(classifier(), files(), gray, CPU)
    assert "expected input" in caught.value.saw
    assert "--preset cifar10" in caught.value.fix
    assert "--mean 0.5,0.5,0.5 --std 0.5,0.5,0.5" in caught.value.fix
    one = nn.Sequential(nn.Conv2d(1, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(BadInput, match="images with 3 channels, but the network takes 1") as caught:
        run(files(), model=classifier(one))
    assert "--mean 0.5 --std 0.5" in caught.value.fix


def test_a_model_that_fails_is_quoted_with_the_sizes() -> None:
    one_size = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
    with pytest.raises(BadInput, match=r"failed on images of shape \(4, 3, 12, 12\)") as caught:
        run(files(), model=classifier(one_size))
    assert "mat1 and mat2" in caught.value.saw
    assert "--size" in caught.value.fix


@pytest.mark.parametrize(
    ("module", "saw"),
    [
        (nn.Flatten(), r"(4, 432) of torch.float32"),
        (nn.Identity(), "(4, 3, 12, 12)"),
        (nn.Sequential(nn.Flatten(0)), "(1728,)"),
    ],
)
def test_anything_but_c_logits_an_image_is_refused(module: nn.Module, saw: str) -> None:
    with pytest.raises(BadInput, match="does not return 5 logits per image") as caught:
        run(files(), model=classifier(module))
    assert saw in caught.value.saw


def test_a_nan_is_refused_and_its_image_named() -> None:
    class Broken(Net):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = super().forward(images)
            logits[2, 1] = torch.nan
            return logits

    with pytest.raises(BadInput, match=r"NaN for 2\.jpg") as caught:
        run(files(), model=classifier(Broken()))
    assert caught.value.saw == "1 of its 5 logits"


# ---------------------------------------------------------------- options and devices


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"workers": -1}, {"amp": "int3"}, {"device": "tpu"}]
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        run(files(), replace(CPU, **options))
    assert "--" in caught.value.fix


def test_auto_says_when_there_is_no_cuda_and_cuda_insists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    notes: list[str] = []
    assert pick_device("auto", notes.append) == torch.device("cpu")
    assert notes == ["no CUDA device is available: the model runs on the CPU"]
    for name in ("cuda", "cuda:1"):
        with pytest.raises(EnvironmentProblem, match="no CUDA device"):
            pick_device(name)
    assert pick_device("cpu", notes.append).type == "cpu"
    assert len(notes) == 1


def test_each_process_has_the_device_of_its_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device("auto") == torch.device("cuda", 1)
    assert pick_device("cuda:0") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(EnvironmentProblem, match="no CUDA device 2"):
        pick_device("cuda")


@pytest.mark.gpu
@NO_CUDA
@pytest.mark.parametrize("data", [files(), in_memory()], ids=["decoded", "in memory"])
def test_cuda_gives_what_the_cpu_gives(data: Images) -> None:
    here = run(data).logits
    there = run(data, replace(CPU, device="cuda", workers=2)).logits
    np.testing.assert_allclose(there, here, rtol=1e-3, atol=1e-3)
    assert (there.argmax(1) == here.argmax(1)).all()


# ---------------------------------------------------------------- several processes

PROGRAM = """
    import os
    import signal
    import sys
    import numpy as np
    from dataclasses import replace
    sys.path[:0] = [{tests!r}, {tests!r} + "/.."]
    import test_predict as t
    from rescale_cli.evaluating import ranks
    from rescale_cli.errors import EnvironmentProblem, RescaleError

    out, case = sys.argv[1:]
    options = replace(t.CPU, workers=1)
    try:
        if case == "equal":
            passes = [
                (t.files(), options),
                (t.files(3), options),  # fewer batches than ranks
                (t.files(damaged=(0, 9, 22)), replace(options, skip_bad=True)),
                (t.in_memory(), replace(options, batch_size=3)),
            ]
        elif case == "bad":
            passes = [(t.files(damaged=(1, 20, 21)), options)]
        elif case == "one fails":
            def gone(index):
                if ranks.rank() == 1:
                    raise EnvironmentProblem("the disk is gone", saw=f"image {{index}}", fix="-")
                return t.pixels()[index]

            passes = [(replace(t.files(), read=gone), options)]
        elif case == "one is killed":
            def killed(index):
                if ranks.rank() == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                return t.pixels()[index]

            passes = [(replace(t.files(), read=killed), replace(options, workers=0))]
        made = [t.run(*one) for one in passes]
        if not ranks.is_main():
            assert made == [None] * len(made)
            sys.exit(0)
        np.savez(out, **{{f"l{{i}}": m.logits for i, m in enumerate(made)}},
                 **{{f"y{{i}}": m.labels for i, m in enumerate(made)}},
                 **{{f"s{{i}}": np.array(m.skipped, str) for i, m in enumerate(made)}})
    except RescaleError as error:
        if ranks.is_main():
            print(error.what, error.saw, file=sys.stderr)
        ranks.finish(error)
        sys.exit(error.exit_code)
"""


def program(case: str, folder: Path) -> list[str]:
    file = folder / "program.py"
    file.write_text(textwrap.dedent(PROGRAM).format(tests=str(Path(__file__).parent)))
    return [str(file), str(folder / "out.npz"), case]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_several_ranks_give_the_very_bits_of_one(processes: int, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, f"--nproc-per-node={processes}", *program("equal", tmp_path)]
    environment = child_environment(OMP_NUM_THREADS="1", PYTHONWARNINGS="default")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    alone = [
        run(files()),
        run(files(3)),
        run(files(damaged=(0, 9, 22)), replace(CPU, skip_bad=True)),
        run(in_memory(), replace(CPU, batch_size=3)),
    ]
    with np.load(tmp_path / "out.npz") as found:
        for i, one in enumerate(alone):
            assert np.array_equal(found[f"l{i}"], one.logits)
            assert np.array_equal(found[f"y{i}"], one.labels)
            assert tuple(found[f"s{i}"].tolist()) == one.skipped


def test_torchrun_ends_the_run_when_a_rank_is_killed(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node=2", *program("one is killed", tmp_path)]
    environment = child_environment(OMP_NUM_THREADS="1")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 1
    assert "SIGKILL" in done.stderr
    assert not (tmp_path / "out.npz").exists()


def ranks_of(case: str, folder: Path) -> list[tuple[int, str]]:
    """Exit code and stderr of two ranks that nothing but their environment brings together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, *program(case, folder)], stderr=subprocess.PIPE, text=True,
            env=child_environment(**meeting, RANK=str(rank), PYTHONWARNINGS="default"),
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[1] for process in started]
    return [(process.returncode, text) for process, text in zip(started, said, strict=True)]


@pytest.mark.slow
def test_bad_images_of_all_ranks_are_one_error_that_rank_0_tells(tmp_path: Path) -> None:
    (code, said), (other_code, silence) = ranks_of("bad", tmp_path)
    assert "3 of 23 images in a folder cannot be read" in said
    assert all(f"{i}.jpg cannot be decoded" in said for i in (1, 20, 21))
    assert (code, other_code, silence) == (3, 3, "")


@pytest.mark.slow
def test_when_one_rank_fails_all_end_and_rank_0_tells_why(tmp_path: Path) -> None:
    (code, said), (other_code, silence) = ranks_of("one fails", tmp_path)
    assert "the disk is gone image 12" in said
    assert (code, other_code, silence) == (5, 5, "")


def test_without_torchrun_this_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")  # as job schedulers set it for their own
    assert (ranks.rank(), ranks.size(), ranks.is_main()) == (0, 1, True)
    ranks.finish()
