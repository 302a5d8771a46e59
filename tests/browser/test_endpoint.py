"""The switch in Compare, and a program that asks the chosen columns by the page's own address and token."""

from typing import Any

import openai
import pytest

from tests.browser.conftest import SLOW, Site
from tests.browser.page import expect, shot_of_both
from tests.conftest import train

pytestmark = pytest.mark.browser


@pytest.mark.slow
def test_a_program_asks_the_columns_that_are_chosen(open_page: Any, site: Site, llama: Any) -> None:
    adapter = train(site.store, base_model=str(llama), name="heron", max_steps=3).id
    program = openai.OpenAI(base_url=f"{site.url}v1", api_key=site.token, max_retries=0, timeout=90)
    with pytest.raises(openai.InternalServerError, match="switch it on in Compare"):
        program.models.list()
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{site.url}v1", api_key="wrong", max_retries=0).models.list()

    page = open_page(f"?tab=compare&run={adapter}")
    expect(page.locator("#column-title-1")).to_contain_text(adapter, timeout=SLOW)
    page.locator("#endpoint button").first.click()
    page.locator("#endpoint-switch input").check()
    expect(page.locator("#endpoint-status")).to_contain_text(f"{site.url}v1", timeout=SLOW)
    expect(page.locator("#endpoint-status")).to_contain_text(f"{llama}, {adapter}")
    page.locator("#endpoint").scroll_into_view_if_needed()
    shot_of_both(page, "endpoint")

    assert [model.id for model in program.models.list()] == [str(llama), adapter]
    for model in ("base", adapter):
        answer = program.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Name two colours"}], max_tokens=5, temperature=0
        )
        assert answer.usage and answer.usage.completion_tokens <= 5 and answer.choices[0].message.content is not None

    page.reload()
    page.locator("#endpoint button").first.click()
    expect(page.locator("#endpoint-switch input")).to_be_checked(timeout=SLOW)
    page.locator("#endpoint-switch input").uncheck()
    expect(page.locator("#endpoint-status")).to_contain_text("Off.")
    with pytest.raises(openai.InternalServerError, match="switch it on in Compare"):
        program.models.list()
