"""Pascal VOC's XML files ⇄ fields (host.robots.ox.ac.uk/pascal/VOC).

Reading: xmin … ymax are the sides of the box in pixels from the corner of the image, as LabelImg
and CVAT write them (the challenge itself counted pixels from 1, a shift of one pixel).
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from xml.etree import ElementTree

from data_prep.fields import (
    OTHER,
    Box,
    Fault,
    Field,
    Findings,
    finite,
    image_path,
    image_size,
    label_of,
    mend_boxes,
    number,
    others_of,
    shown,
)

SIDES = ("xmin", "ymin", "xmax", "ymax")
SIZE = ("width", "height")
# What is written where a field says nothing, and not kept when it is read.
FILE = {"folder": "", "depth": "3"}
OBJECT = {"pose": "Unspecified", "truncated": "0", "difficult": "0"}
TAG = re.compile(r"(\{[^{}<>&\"]*\})?[^\W\d][\w.-]*")
NO_XML = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def field_from_voc(text: str, place: str, findings: Findings) -> Field:
    """One VOC file as a field; further elements are kept, attributes are not. Raises Fault."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise Fault("declares a document type, which no VOC file does")
    try:
        root = ElementTree.fromstring(text)
        own = _own(root, {"filename", "size", "object"}, FILE)
    except (ElementTree.ParseError, ValueError) as error:
        if isinstance(error, Fault):
            raise
        raise Fault(f"is no whole XML file ({error})") from None
    except RecursionError:
        raise Fault("is nested too deeply") from None
    if root.tag != "annotation":
        raise Fault(f"is no VOC file: it begins with <{root.tag}>, not <annotation>")
    image = image_path(root.findtext("filename"))
    width, height = image_size(*(_value(root.findtext(f"size/{key}")) for key in SIZE))
    boxes = []
    for index, element in enumerate(root.findall("object"), 1):
        try:
            boxes.append(_box(element))
        except Fault as fault:
            findings.faults.append(f"{place}: object {index} {fault}")
    boxes = mend_boxes(place, boxes, width, height, findings)
    depth = root.findtext("size/depth", FILE["depth"]).strip()
    if depth != FILE["depth"]:
        own["voc"] = {"depth": depth, **own.get("voc", {})}
    return Field(image, width, height, boxes, own)


def _value(text: str | None) -> Any:
    """The number in a text, or the text."""
    try:
        return float(text or "")
    except ValueError:
        return text


def _box(element: ElementTree.Element) -> Box:
    label = label_of(element.findtext("name"))
    x0, y0, x1, y1 = (finite(_value(element.findtext(f"bndbox/{side}"))) for side in SIDES)
    score = element.findtext("score")
    own = _own(element, {"name", "bndbox", "score"}, OBJECT)
    return Box(label, x0, y0, x1, y1, None if score is None else finite(_value(score)), own)


def _own(element: ElementTree.Element, known: set[str], usual: Mapping[str, str]) -> dict[str, Any]:
    """The other children as {"voc": {"source": {"database": "Unknown"}}}, and other formats'."""
    own = _content(element, known | {OTHER})
    text = element.findtext(OTHER)
    try:
        others = json.loads(text) if text else None
    except ValueError:
        raise Fault(f"has {OTHER} {shown(text)}, which is no JSON: mend or remove that") from None
    own = own.items() if isinstance(own, dict) else ()
    rest = {tag: content for tag, content in own if content != usual.get(tag)}
    return {**others_of(others), **({"voc": rest} if rest else {})}


def _content(element: ElementTree.Element, without: Iterable[str] = ()) -> Any:
    """The text of an element without children, else {tag: content}, a list where a tag repeats."""
    if len(element) == 0:
        return (element.text or "").strip()
    content: dict[str, list[Any]] = {}
    for child in element:
        if child.tag not in without:
            content.setdefault(child.tag, []).append(_content(child))
    return {tag: each[0] if len(each) == 1 else each for tag, each in content.items()}


def voc_from_field(item: Field) -> str:
    """The text of the VOC file of a field; raises Fault for what XML cannot hold."""
    root = ElementTree.Element("annotation")
    own = {**FILE, **item.own.get("voc", {})}
    _write(root, "folder", own.pop("folder"))
    _write(root, "filename", item.image)
    size = {"width": item.width, "height": item.height, "depth": own.pop("depth")}
    _write(root, "size", size)
    _write_rest(root, own, item.own, {"filename", "size", "object"})
    for box in item.boxes:
        element = ElementTree.SubElement(root, "object")
        _write(element, "name", box.label)
        own = {**OBJECT, **box.own.get("voc", {})}
        if box.score is not None:
            _write(element, "score", box.score)
        corners = map(number, box.corners)
        _write(element, "bndbox", dict(zip(SIDES, corners, strict=True)))
        _write_rest(element, own, box.own, {"name", "bndbox", "score"})
    ElementTree.indent(root, "\t")
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _write(parent: ElementTree.Element, tag: str, content: Any) -> None:
    """The inverse of _content, below `parent`."""
    if not TAG.fullmatch(tag):
        raise Fault(f"has the key {shown(tag)} in {OTHER}, which is no name in XML: mend that")
    if isinstance(content, list):
        for each in content:
            _write(parent, tag, each)
        return
    element = ElementTree.SubElement(parent, tag)
    if isinstance(content, Mapping):
        for key, value in content.items():
            _write(element, key, value)
    elif NO_XML.search(text := "" if content is None else str(content)):
        raise Fault(f"has {shown(text)} for {tag}, with a character that XML has not: mend that")
    else:
        element.text = text


def _write_rest(
    parent: ElementTree.Element, own: Mapping[str, Any], all_formats: Mapping[str, Any], done: set
) -> None:
    """The kept elements, then what other formats know, as JSON in ASCII."""
    for tag, content in own.items():
        if tag not in done:
            _write(parent, tag, content)
    others = {name: value for name, value in all_formats.items() if name != "voc"}
    if others:
        try:
            _write(parent, OTHER, json.dumps(others, allow_nan=False))
        except ValueError:
            raise Fault(f"has {OTHER} with a number that is not finite: mend that") from None
