"""The TFDS data set of single cells, and what the codes of its classes mean.

Codes of AML-Cytomorphology_LMU (Matek et al. 2019, doi 10.7937/tcia.2019.36f5o9ld), which are also
used for other collections where they apply. MYO and MYB are easily swapped.
"""

CELL_NAMES = {
    "BAS": "basophil",
    "EBO": "erythroblast",
    "EOS": "eosinophil",
    "KSC": "smudge cell",
    "LYA": "lymphocyte, atypical",
    "LYT": "lymphocyte, typical",
    "MMZ": "metamyelocyte",
    "MOB": "monoblast",
    "MON": "monocyte",
    "MYB": "myelocyte",
    "MYO": "myeloblast",
    "NGB": "neutrophil, band",
    "NGS": "neutrophil, segmented",
    "PMB": "promyelocyte, bilobed",
    "PMO": "promyelocyte",
}
