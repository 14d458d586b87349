"""Features and model names from the /proc/cpuinfo of several processors."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.machine.cpu_features import cpu_features, cpu_model

EPYC = """\
processor\t: 0
vendor_id\t: AuthenticAMD
model\t\t: 17
model name\t: AMD EPYC 9354 32-Core Processor
flags\t\t: fpu sse sse2 pni ssse3 fma avx f16c avx2 avx512f avx512bw avx512_bf16 avx512vbmi \
avx512_vnni
bugs\t\t: spectre_v1

"""

XEON = """\
processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8480+
flags\t\t: pni ssse3 fma f16c avx avx2 avx512f avx512bw avx512vbmi avx512_vnni avx_vnni \
avx512_bf16 amx_bf16 amx_tile amx_int8
vmx flags\t: vnmi sve i8mm

"""

GRAVITON = """\
processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd evtstrm aes crc32 asimdhp asimddp sve i8mm bf16
CPU implementer\t: 0x41

"""

RASPBERRY = """\
processor\t: 0
Features\t: fp asimd crc32
processor\t: 1
Features\t: fp asimd crc32

Model\t\t: Raspberry Pi 4 Model B Rev 1.1
"""


def recorded(root: Path, cpuinfo: str) -> Path:
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(cpuinfo)
    return root


def test_features_have_a_fixed_order_whatever_the_order_of_the_flags(tmp_path: Path) -> None:
    assert cpu_features(recorded(tmp_path, EPYC * 2)) == (
        "sse3",
        "ssse3",
        "avx",
        "avx2",
        "f16c",
        "fma",
        "avx512f",
        "avx512bw",
        "avx512vbmi",
        "avx512_vnni",
        "avx512_bf16",
    )


def test_matrix_extensions_are_found_and_the_flags_of_virtualization_are_not_taken_for_the_cpus(
    tmp_path: Path,
) -> None:
    features = cpu_features(recorded(tmp_path, XEON))

    assert features[-4:] == ("avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16")


def test_arm_features_have_their_usual_names(tmp_path: Path) -> None:
    assert cpu_features(recorded(tmp_path, GRAVITON)) == ("neon", "dotprod", "i8mm", "sve")


def test_a_feature_that_one_cpu_lacks_does_not_count(tmp_path: Path) -> None:
    without = EPYC.replace(" avx512f", "")

    features = cpu_features(recorded(tmp_path, EPYC + without))

    assert "avx512f" not in features
    assert "avx2" in features


@pytest.mark.parametrize(
    ("cpuinfo", "model"),
    [
        (EPYC * 2, "AMD EPYC 9354 32-Core Processor"),
        (XEON, "Intel(R) Xeon(R) Platinum 8480+"),
        (RASPBERRY, "Raspberry Pi 4 Model B Rev 1.1"),
        (GRAVITON, "unknown"),
        ("model name\t:\n", "unknown"),
    ],
)
def test_the_model_name_is_the_processors_or_else_the_boards(
    tmp_path: Path, cpuinfo: str, model: str
) -> None:
    assert cpu_model(recorded(tmp_path, cpuinfo)) == model


def test_an_unreadable_cpuinfo_gives_no_features_and_an_unknown_model(tmp_path: Path) -> None:
    assert cpu_features(tmp_path) == ()
    assert cpu_model(tmp_path) == "unknown"


def test_bytes_that_are_not_text_do_not_hide_the_rest(tmp_path: Path) -> None:
    recorded(tmp_path, "")
    (tmp_path / "proc/cpuinfo").write_bytes(b"model name\t: CPU \xff\nflags\t: avx2\n")

    assert cpu_features(tmp_path) == ("avx2",)
    assert cpu_model(tmp_path).startswith("CPU")
