"""Addresses of views, `?tab=compare&run=<id>`, and the one message by which tabs send people to each other."""

import time
from typing import Any
from urllib.parse import urlencode

import gradio as gr

TABS = ("train", "runs", "compare", "report")
Link = dict[str, Any]  # what `to` gives


def to(tab: str, *runs: str, show: bool = True, fill: bool = False) -> Link:
    """A link to a tab, about these runs: Train may `show` the first and `fill` the form with its settings.

    The stamp makes every press a change, also of the same link.
    """
    return {"tab": tab, "runs": list(runs), "show": show, "fill": fill, "stamp": time.time()}


def from_request(request: gr.Request) -> Link:
    """The link that the page's address asks for; unknown tabs open the first."""
    asked = request.query_params
    tab = asked.get("tab", TABS[0])
    runs = asked.getlist("run") if hasattr(asked, "getlist") else [asked["run"]] if "run" in asked else []
    return to(tab if tab in TABS else TABS[0], *runs[:6], fill=True)


def address(link: Link) -> str:
    """The address of a link."""
    return "?" + urlencode([("tab", link["tab"]), *(("run", run) for run in link["runs"])])


# The page has a base address, from which a link to "#place" leads away and loses the form: it is followed here instead.
IN_PAGE = """() => {
  if (window.linksAreFollowed) return;
  window.linksAreFollowed = true;
  document.addEventListener('click', (event) => {
    const link = event.target.closest && event.target.closest('a[href^="#"]');
    if (!link) return;
    event.preventDefault();
    const place = document.getElementById(decodeURIComponent(link.hash.slice(1)));
    if (place) place.scrollIntoView({behavior: 'smooth'});
  });
}"""
# A tab pressed by hand: keep what the address says about this tab, drop what it says about another.
# The first tab is also "selected" while the page loads; then the address has not been read yet.
ON_TAB = """() => {{
  if (!window.addressWasRead) return;
  const here = new URL(window.location);
  if ((here.searchParams.get('tab') || 'train') !== '{tab}') history.replaceState(null, '', '?tab={tab}');
}}"""
# Sent by a link: set the address; a run that was started far down the page is brought into view.
ON_LINK = """(address) => {
  window.addressWasRead = true;
  history.replaceState(null, '', address);
  if (address.startsWith('?tab=train&run=')) setTimeout(() => {
    const live = document.getElementById('live');
    const top = live ? live.getBoundingClientRect().top : 0;
    if (top < 0 || top > window.innerHeight * 0.6) live.scrollIntoView({behavior: 'smooth'});
  }, 600);
}"""
