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

# Images of each class in that data set (18,365), the largest class first.
LMU_COUNTS = {
    "NGS": 8484,
    "LYT": 3937,
    "MYO": 3268,
    "MON": 1789,
    "EOS": 424,
    "NGB": 109,
    "BAS": 79,
    "EBO": 78,
    "PMO": 70,
    "MYB": 42,
    "MOB": 26,
    "PMB": 18,
    "KSC": 15,
    "MMZ": 15,
    "LYA": 11,
}
LMU_LEAST = 30  # the paper (Sun et al. 2022) keeps the ten classes with more images than this
