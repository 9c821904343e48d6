"""Twenty changes of model on a running line, in small what `make prove-swap` does in full."""

import structlog

from tests.faults.measure_swap import run, run_bad


def test_no_trigger_is_lost_while_models_change(tmp_path):
    with structlog.testing.capture_logs():
        result = run(tmp_path, swaps=20, turns=2, period_ms=15.0, fresh=False)

    assert result.swaps == 20
    assert result.inspected + result.faults == result.triggers
    assert result.inspected > 100


def test_new_releases_are_tried_out_while_the_line_goes_on(tmp_path):
    with structlog.testing.capture_logs():
        result = run(tmp_path, swaps=2, turns=1, period_ms=15.0, fresh=True)

    assert result.swaps == 2
    assert result.inspected + result.faults == result.triggers


def test_a_bad_model_is_sent_back_within_sixty_parts(tmp_path):
    with structlog.testing.capture_logs():
        (after,) = run_bad(tmp_path, count=1, period_ms=15.0)

    # One part in four is rejected, and the new model passes half of these.
    assert after is not None
    assert after <= 60
