"""Whatever becomes of a shard's bytes, it is scored the same or refused in one line. Longer: python tests/fuzzing_cache.py"""

from fuzzing_cache import faults, run
from hdf5_structures import checksum

# Mutations that were not stood: HDF5 crashed, looped, took 2 GB, or could not close the file. Checksums are right in all.
OLD_FAULTS = (92, 100, 589, 1081, 1403, 3614, 4249)


def test_mutated_shards_are_stood() -> None:
    lines = list(run(120))
    assert len(lines) == 120 and {"refused", "other"} <= lines[0].keys()
    assert faults(lines) == []
    assert 20 < sum(line["refused"] for line in lines) < 115
    assert any(line["repaired"] and not line["refused"] for line in lines), "checksums are made right"


def test_mutations_that_were_not_stood_are_stood() -> None:
    assert [fault for number in OLD_FAULTS for fault in faults(list(run(1, number)))] == []


def test_the_checksum_is_that_of_hdf5() -> None:
    assert checksum(b"") == bytes.fromhex("efbeadde")
    assert checksum(b"Four score and seven years ago") == (0x17770551).to_bytes(4, "little")  # as lookup3.c has it
