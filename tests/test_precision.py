"""The recorded check that the fast engine does the same science as plain float32 modules."""

from benchmarks.precision import compare


def test_the_fast_engine_ends_within_a_standard_deviation_of_plain_float32():
    table = compare()
    assert table[["precision", "bn", "conv"]].T.to_dict("list") == {
        "fast": ["bf16", "C++", "torch"], "fast, Winograd": ["bf16", "C++", "Winograd, strips"],
        "fast, AMX": ["bf16", "C++, whole blocks", "our AMX kernel, strided too, whole blocks"],
        "plain float32": ["fp32", "torch", "torch"]}
    assert table.filter(like="seed").notna().all(axis=None) and table.filter(like="seed").shape == (4, 3)
    assert table["mean"].max() - table["mean"].min() < table.loc["plain float32", "std"]
