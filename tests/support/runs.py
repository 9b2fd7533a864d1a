"""Runs of the benchmark made up of given times, and the machine that they pretend to be from."""

from attnfast.bench.cases import select
from attnfast.bench.results import CaseResult, Entry, Report

CONTESTANTS = {"attnfast": "1.2", "numpy": "2", "torch": "3"}


def result_of(name, peak=100.0, contestants=CONTESTANTS, **seconds):
    """A case with the times of its contestants, one round each; 100 GB/s of memory."""
    case = select([name])[0]
    entries = {
        contestant: Entry(contestant, "way", [time], [time], error=1e-7)
        for contestant, time in seconds.items()
    }
    for contestant in contestants:
        entries.setdefault(contestant, Entry(contestant, note="the scores would take 9.9 GB"))
    pairs = case.batch * case.q_len * case.k_len
    return CaseResult(case, pairs, peak, 100.0 if case.cold else None, 1e-7, entries)


def seconds_at(name, share, peak):
    """The time of a call at a share of the limit."""
    result = result_of(name, peak)
    return result.work / (share * result.limit)


def report_of(results, threads=2, peak=100.0, contestants=CONTESTANTS, **changes):
    """A run on a machine with AVX-512; `changes` are facts of the machine."""
    machine = {
        "version": "1.2",
        "cpu": "Some CPU",
        "cores": 4,
        "affinity": 4,
        "quota": None,
        "isa": "avx512",
        "isas": ["avx512", "avx2"],
        "openmp": "none",
        "numpy": "2",
        "blas": "some",
        "python": "3",
        "date": "2030-01-02",
        **changes,
    }
    settings = {"threads": threads, "rounds": 3}
    limits = {"fma_float32": peak, "fma_float64": peak / 2, "bandwidth": 100.0}
    return Report(machine, settings, limits, dict(contestants), list(results))
