"""Requests and bytes of a web host are limited apart from those of other hosts."""

import pytest

from tasks.tables.host_budget import HostBudget, host_of, process_budget


def test_bytes_and_pauses_are_booked_for_each_host_alone():
    budget = HostBudget(requests_per_s=10, bytes_per_s=1000)
    assert budget.reserve("a", num_requests=1) == 0
    assert budget.reserve("a", num_bytes=500) == pytest.approx(0.1, abs=0.05)
    assert budget.reserve("a", num_requests=1) == pytest.approx(0.6, abs=0.05)
    assert budget.reserve("b", num_requests=1) == 0
    budget.hold("b", 5)
    assert budget.waits() == pytest.approx({"a": 0.7, "b": 5}, abs=0.1)
    assert budget.reserve("b", num_requests=1) == pytest.approx(5, abs=0.1)


def test_the_budget_of_a_process_keeps_rates_that_are_not_given():
    before = process_budget()
    assert process_budget(requests_per_s=before.requests_per_s) is before
    assert process_budget().requests_per_s == before.requests_per_s


def test_the_host_of_a_url_is_without_user_and_password_and_with_its_port():
    assert host_of("https://user:secret@Example.org:8443/a.mp4?x=1") == "example.org:8443"
