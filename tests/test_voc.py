"""Pascal VOC: what is kept, what is refused, and that what is written is XML."""

import random
from xml.etree import ElementTree

import pytest

from data_prep.fields import Box, Fault, Field, Findings
from data_prep.voc import field_from_voc, voc_from_field

FILE = """<?xml version="1.0" encoding="utf-8"?>
<annotation verified="yes">
	<folder>JPEGImages</folder>
	<filename>sub\\a.jpg</filename>
	<path>/home/pi/a.jpg</path>
	<source><database>Unknown</database><image>flickr</image></source>
	<size><width>100</width><height>80</height><depth>1</depth></size>
	<segmented>0</segmented>
	<!-- two cells -->
	<object>
		<name> WBC </name><pose>Left</pose><truncated>1</truncated><difficult>0</difficult>
		<bndbox><xmax>30</xmax><xmin>10.5</xmin><ymin>20</ymin><ymax>50</ymax></bndbox>
		<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>
		<part><name>hand</name></part>
	</object>
	<object><name>RBC</name><score>0.25</score>
		<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></object>
</annotation>
"""


def read(text: str) -> tuple[Field, Findings]:
    findings = Findings()
    return field_from_voc(text, "a.xml", findings), findings


def test_a_voc_file_as_a_field():
    field, findings = read(FILE)
    assert not findings.faults and not findings.notes
    assert (field.image, field.width, field.height) == ("sub/a.jpg", 100, 80)
    assert [(box.label, box.corners, box.score) for box in field.boxes] == [
        ("WBC", (10.5, 20, 30, 50), None),
        ("RBC", (1, 2, 3, 4), 0.25),
    ]


def test_further_elements_survive_and_the_second_pass_changes_no_byte():
    first = voc_from_field(read(FILE)[0])
    root = ElementTree.fromstring(first)
    for path, text in {
        "folder": "JPEGImages",
        "path": "/home/pi/a.jpg",
        "source/database": "Unknown",
        "source/image": "flickr",
        "size/depth": "1",
        "segmented": "0",
        "object/pose": "Left",
        "object/truncated": "1",
    }.items():
        assert root.findtext(path) == text
    parts = root.findall("object/part")
    assert [part.findtext("name") for part in parts] == ["head", "hand"]
    assert parts[0].findtext("bndbox/xmin") == "1"
    assert [child.tag for child in root] == [
        *("folder", "filename", "size", "path", "source", "segmented", "object", "object")
    ]
    assert voc_from_field(read(first)[0]) == first


def test_defaults_of_a_new_file():
    root = ElementTree.fromstring(voc_from_field(Field("a.jpg", 9, 8, (Box("a", 1, 2, 3, 4.5),))))
    assert [root.findtext(f"size/{key}") for key in ("width", "height", "depth")] == ["9", "8", "3"]
    assert root.findtext("object/difficult") == "0"
    sides = [root.findtext(f"object/bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
    assert sides == ["1", "2", "3", "4.5"]


BOMB = """<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;">]><annotation><filename>&c;</filename></annotation>"""
XXE = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>'


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (BOMB, "declares a document type, which no VOC file does"),
        (XXE, "declares a document type, which no VOC file does"),
        (FILE[:200], "is no whole XML file"),
        ("", "is no whole XML file"),
        ("{}", "is no whole XML file"),
        ("<a>&lol;</a>", "is no whole XML file (undefined entity"),
        ("<html/>", "is no VOC file: it begins with <html>, not <annotation>"),
        ("<annotation/>", "names the image None, which is no path"),
        ("<annotation>" + "<a>" * 100_000 + "</a>" * 100_000 + "</annotation>", "too deeply"),
        (FILE.replace("sub\\a", "..\\a"), "which lies outside the folder of images"),
        (FILE.replace("sub\\a", "/home/a"), "a path relative to the folder of images is needed"),
        (FILE.replace("<width>100", "<width>0"), "has the size 0.0 x 80.0: two whole numbers"),
        (FILE.replace("<width>100", "<width>wide"), "has the size 'wide' x 80.0"),
        (FILE.replace("<width>100</width>", ""), "has the size None x 80.0"),
        (FILE.replace("<source>", "<other_formats>{</other_formats><source>"), "which is no JSON"),
        (FILE.replace("<source>", "<other_formats>[]</other_formats><source>"), "mend or remove"),
    ],
)
def test_what_is_no_voc_file_is_a_fault(text, fault):
    with pytest.raises(Fault) as error:
        read(text)
    assert fault in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("<name> WBC </name>", "<name> </name>", "object 1 has the label ' ': a name is needed"),
        ("<name> WBC </name>", "", "object 1 has the label None: a name is needed"),
        ("<xmin>10.5</xmin>", "<xmin>nan</xmin>", "object 1 has nan where a number is needed"),
        ("<xmin>10.5</xmin>", "<xmin>ten</xmin>", "object 1 has 'ten' where a number is needed"),
        ("<xmin>10.5</xmin>", "", "object 1 has None where a number is needed"),
        ("<score>0.25</score>", "<score>inf</score>", "object 2 has inf where a number is needed"),
        ("<score>0.25</score>", "<score>good</score>", "object 2 has 'good' where a number is"),
    ],
)
def test_what_is_no_object_is_a_fault_with_its_number(old, new, fault):
    assert old in FILE
    field, findings = read(FILE.replace(old, new))
    assert len(field.boxes) == 1
    assert len(findings.faults) == 1 and findings.faults[0].startswith(f"a.xml: {fault}")


def test_boxes_without_area_are_noted():
    field, findings = read(FILE.replace("<xmax>30</xmax>", "<xmax>10.5</xmax>"))
    assert [box.label for box in field.boxes] == ["RBC"]
    assert findings.notes == ["a.xml: box 1 (WBC) has no area and is left out"]


@pytest.mark.parametrize(
    "label", ["<WBC> & \"co\" 'x'", "]]>", "лимфоцит", "细胞", "🩸", "a  b", "&amp;", "\u00a0x"]
)
def test_any_label_and_any_text_of_another_format_come_back(label):
    odd = {"text": label + "\x01\ud800\ufffe\r\n", "list": [1, None, True]}
    box = Box(label, 1, 2, 3, 4, 0.1, {"labelme": odd, "coco": {"id": 3}})
    field = Field("sub/é & <x>.jpg", 9, 9, (box,), {"labelme": odd})
    text = voc_from_field(field)
    text.encode()
    back, findings = read(text)
    assert not findings.faults
    assert back.image == field.image and back.own["labelme"] == odd
    assert back.boxes[0].label == label.strip()
    assert back.boxes[0].own == box.own
    assert voc_from_field(back) == text.replace(label, label.strip())


@pytest.mark.parametrize(
    ("own", "fault"),
    [
        ({"voc": {"a b": "x"}}, "has the key 'a b' in other_formats, which is no name in XML"),
        ({"voc": {"a><b": "x"}}, "which is no name in XML"),
        ({"voc": {"ok": "\x01"}}, "has '\\x01' for ok, with a character that XML has not"),
        ({"coco": {"area": float("nan")}}, "has other_formats with a number that is not finite"),
    ],
)
def test_what_xml_cannot_hold_is_a_fault(own, fault):
    for field in (
        Field("a.jpg", 9, 9, (), own),
        Field("a.jpg", 9, 9, (Box("a", 1, 2, 3, 4, None, own),)),
    ):
        with pytest.raises(Fault) as error:
            voc_from_field(field)
        assert fault in str(error.value)


def test_random_boxes_come_back():
    rng = random.Random(0)
    for _ in range(50):
        boxes = []
        for _ in range(5):
            x0, x1 = sorted(rng.uniform(0, 99) for _ in range(2))
            y0, y1 = sorted(rng.uniform(0, 99) for _ in range(2))
            boxes.append(Box(rng.choice("ab"), x0, y0, x1, y1, rng.random()))
        back, _ = read(voc_from_field(Field("a.jpg", 99, 99, tuple(boxes))))
        for old, new in zip(boxes, back.boxes, strict=True):
            assert (new.label, new.score) == (old.label, old.score)
            assert new.corners == pytest.approx(old.corners, abs=1e-4)
