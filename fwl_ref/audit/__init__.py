"""Is this score legal? Was every token scored before anything that had seen it?

    from fwl_ref.audit import check_score_first
    check_score_first(evaluator, document)  # raises ScoreLeak, which says what leaks, how far

An evaluator is any function from tokens (n,) to losses (n-1,) or logits (n-1,V): row i scores token
i + 1. See docs/audit.md for what is checked, and what no such check can see.
"""

from .check import AuditReport, Finding, ScoreLeak, audit_scores, check_score_first
from .evaluator import streamed

__all__ = [
    "AuditReport", "Finding", "ScoreLeak", "audit_scores", "check_score_first", "streamed",
]  # fmt: skip
