"""A report as JUnit's XML, which CI systems show: a test case for each case, and one for each threshold."""

from __future__ import annotations

import re
from typing import Final
from xml.etree import ElementTree as ET

from stoker.evaluation.report import CaseResult, Report, cut
from stoker.evaluation.verdict import Verdict

SHOWN: Final = 10_000
"""Characters of an answer."""
# What XML 1.0 (2.2) does not allow, not even escaped.
_FORBIDDEN: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(report: Report, verdict: Verdict) -> bytes:
    """The document in UTF-8. Characters that XML cannot hold become U+FFFD."""
    failed = [result for result in report.results if not result.passed]
    unmet = [check for check in verdict.checks if not check.passed]
    root = ET.Element("testsuites")
    suite = ET.SubElement(
        root,
        "testsuite",
        name=_clean(f"{report.set_name} {report.model}".strip()),
        tests=str(len(report.results) + len(verdict.checks)),
        failures=str(sum(result.error is None for result in failed) + len(unmet)),
        errors=str(sum(result.error is not None for result in failed)),
        time=f"{report.seconds:.3f}",
    )
    for result in report.results:
        _case(suite, report, result)
    for check in verdict.checks:
        case = ET.SubElement(
            suite, "testcase", classname=_clean(f"{report.set_name}.thresholds"), name=_clean(check.name)
        )
        if not check.passed:
            ET.SubElement(case, "failure", message=_clean(str(check)))
    ET.indent(root)
    written: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return written


def _case(suite: ET.Element, report: Report, result: CaseResult) -> None:
    case = ET.SubElement(
        suite, "testcase", classname=_clean(report.set_name), name=_clean(result.id), time=f"{result.reply.total_s:.3f}"
    )
    if not result.passed:
        kind = "error" if result.error else "failure"
        ET.SubElement(case, kind, message=_clean(cut("; ".join(result.failures), 1000)))
    if result.reply.text:
        ET.SubElement(case, "system-out").text = _clean(cut(result.reply.text, SHOWN))


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
