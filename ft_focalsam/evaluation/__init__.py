"""How good a model is on each part of a long-tailed data set, as numbers, as tables, as drawings and as a page."""

import lazy_loader

from ..base.renamed import with_old_names

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

OLD_NAMES = {
    "judge": "evaluate",
    "JudgeOptions": "EvalConfig",
    "Verdict": "EvalResult",
    "Outcomes": "SampleResults",
    "Tally": "ClassCounts",
    "TestSet": "EvalDataset",
    "load_test_set": "load_eval_dataset",
    "compare_verdicts": "compare_results",
    "verdict_rows": "result_rows",
}
__getattr__ = with_old_names(__name__, __getattr__, OLD_NAMES)
