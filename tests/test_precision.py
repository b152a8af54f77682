"""The recorded check that the fast engine does the same science as plain float32 modules."""

from benchmarks.precision import compare


def test_the_fast_engine_ends_within_a_standard_deviation_of_plain_float32():
    table = compare(missing="skip")
    assert table.loc["fast", ["precision", "bn"]].tolist() == ["bf16", "C++"]
    assert table.loc["plain float32", ["precision", "bn"]].tolist() == ["fp32", "torch"]
    assert table.filter(like="seed").notna().all(axis=None) and table.filter(like="seed").shape == (2, 3)
    assert abs(table["mean"].diff().iloc[-1]) < table["std"].max()
