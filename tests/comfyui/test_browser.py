"""ComfyUI's own page in a headless Chromium: templates, the demo from the Run button to a clip, help, and how the graphs look.

LIVEPHOTO_SCREENSHOT=docs/demo.jpg keeps a picture of the finished demo. CHROMIUM names another Chromium than the PATH's.
"""

import importlib.util
import io
import os
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from livephoto_core.media import read_clip

FOLDER = Path(__file__).parents[2] / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
PACK = "ComfyUI-LivePhoto"
TEMPLATES = 'document.querySelector("[data-testid=template-workflows-content]")'
HELP = 'document.querySelector(".node-help-content img")'
CLIP = '[...document.images].find(image => image.src.includes("/view?") && image.src.includes(".webp"))'
# of the nodes as they lie on the page, title bars included: those that no node type stands for, and those one on another
UNKNOWN = "app.graph._nodes.filter(node => node.has_errors || !LiteGraph.registered_node_types[node.type]).map(node => node.type)"
OVERLAPS = """(() => {
    const boxes = app.graph._nodes.map(node => [node.title, ...node.getBounding()]), found = [];
    for (const [a, x, y, w, h] of boxes)
        for (const [b, u, v, s, t] of boxes)
            if (a < b && x < u + s && u < x + w && y < v + t && v < y + h) found.push(`${a} / ${b}`);
    return found;
})()"""


def load_browser():
    spec = importlib.util.spec_from_file_location("livephoto_tests_browser", Path(__file__).parent / "browser.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page(server, comfyui, tmp_path_factory):
    """ComfyUI's page as it greets a new user: with its templates."""
    if os.name != "posix":
        pytest.skip("NO TEST OF COMFYUI'S PAGE: it takes pipes that Windows does not have")
    browser = load_browser()
    if (program := browser.find()) is None:
        pytest.skip("NO CHROMIUM, SO COMFYUI'S PAGE WAS NOT TESTED: put one on the PATH or name it in CHROMIUM")
    shutil.copy(comfyui.path / "input" / "example.png", server.base / "input" / "example.png")
    opened = browser.Browser(program, tmp_path_factory.mktemp("chromium"), 1600, 1000)
    try:
        opened.open(server.url)
        opened.wait(f"Boolean(window.app?.graph && {TEMPLATES})", 120)
        yield opened
    finally:
        opened.close()


@pytest.fixture(scope="module")
def listed(page):
    """Our part of the template browser: {title: width of its picture}."""
    cards = f'[...{TEMPLATES}.querySelectorAll("[data-testid^=template-workflow-livephoto]")]'
    page.click_until(f'{TEMPLATES}.querySelector("li[aria-label=LivePhoto]")', f"{cards}.length == {len(NAMES)}")
    found = {}
    for number in range(len(NAMES)):
        # a picture is there only while its card is in view
        card = f"{cards}[{number}]"
        width = page.wait(f"({card}.scrollIntoView(), {card}.querySelector('img')?.naturalWidth)")
        found[page.evaluate(f"{card}.querySelector('h3').title")] = width
    return found


def test_templates_are_listed_with_their_pictures(listed):
    assert listed == dict.fromkeys(NAMES, 512)


@pytest.fixture(scope="module")
def opened(page, listed):
    """The demo, opened by its card."""
    page.click(f'{TEMPLATES}.querySelector("[data-testid=template-workflow-livephoto_demo]")')
    page.wait(f'!{TEMPLATES} && app.graph._nodes.some(node => node.type == "LivePhotoApply")')
    return page


def test_demo_opens_without_a_missing_node(opened):
    assert opened.evaluate(UNKNOWN) == []
    assert opened.evaluate('document.querySelectorAll(".p-dialog").length') == 0
    assert opened.evaluate(OVERLAPS) == []


@pytest.fixture(scope="module")
def finished(opened):
    """The page after Run, when the clip is there."""
    opened.click('document.querySelector("[data-testid=queue-button] button")')
    opened.wait(f"{CLIP}?.complete && {CLIP}.naturalWidth", 120)
    return opened


def test_run_ends_in_a_clip_on_the_page(finished, server):
    assert finished.evaluate(f"[{CLIP}.naturalWidth, {CLIP}.naturalHeight]") == [256, 256]
    left, top, width, height = finished.evaluate(f"(box => [box.x, box.y, box.width, box.height])({CLIP}.getBoundingClientRect())")
    assert 0 <= left < left + width <= 1600
    assert 0 <= top < top + height <= 1000
    assert min(width, height) > 100
    name = finished.evaluate(f'new URL({CLIP}.src).searchParams.get("filename")')
    assert len(read_clip(server.base / "output" / "livephoto" / name).frames) == 16
    # what nodes show of their results makes them grow
    assert finished.evaluate(OVERLAPS) == []
    # it would lie over the clip
    finished.click('document.querySelector("[data-testid=close-minmap-button]")')
    picture = Image.open(io.BytesIO(finished.screenshot())).convert("RGB")
    assert picture.size == (1600, 1000)
    if kept := os.environ.get("LIVEPHOTO_SCREENSHOT"):
        picture.save(kept, quality=82, optimize=True)


def open_help(page, node, words):
    """The help panel on a node, by the button that a selected node gets."""
    page.evaluate(f'app.canvas.selectNode(app.graph._nodes.find(node => node.type == "{node}"))')
    page.click('document.querySelector("[data-testid=info-button]")')
    page.wait(f'document.body.innerText.includes("{words}")')


def assert_help_shows_the_graph(page, node):
    size = page.wait(f"{HELP}?.complete && {HELP}.naturalWidth && [{HELP}.naturalWidth, {HELP}.naturalHeight]")
    with Image.open(FOLDER.parent / "web" / "docs" / node / "graph.webp") as picture:
        assert tuple(size) == picture.size
    assert page.evaluate(f"{HELP}.src").endswith(f"/{node}/graph.webp")
    panel, shown = f'{HELP}.closest(".node-help-content").getBoundingClientRect()', f"{HELP}.getBoundingClientRect()"
    assert page.evaluate(f"{shown}.width > 100 && {panel}.left <= {shown}.left && {shown}.right <= {panel}.right")


def test_help_page_is_shown_for_a_node(finished):
    open_help(finished, "LivePhotoApply", "Once in a graph, after the loaders and in front of the sampler")
    assert finished.evaluate('[...document.querySelectorAll("h1, h2")].map(element => element.innerText)').count("Inputs") == 1
    assert_help_shows_the_graph(finished, "LivePhotoApply")


def test_help_page_is_shown_in_chinese(finished):
    titled = 'app.graph._nodes.find(node => node.type == "LivePhotoApply")?.title'
    try:
        finished.evaluate('app.extensionManager.setting.set("Comfy.Locale", "zh").then(() => true)')
        finished.wait(f'{titled} == "应用 LivePhoto"')
        open_help(finished, "LivePhotoIntensity", "每个 LivePhoto 工作流都需要")
        assert_help_shows_the_graph(finished, "LivePhotoIntensity")
    finally:
        finished.evaluate('app.extensionManager.setting.set("Comfy.Locale", "en").then(() => true)')
        finished.wait(f'{titled} == "Apply LivePhoto"')


@pytest.mark.parametrize("name", NAMES)
def test_graphs_are_laid_out(page, listed, name):
    page.evaluate(
        f'fetch("/api/workflow_templates/{PACK}/{name}.json").then(answer => answer.json()).then(graph => app.loadGraphData(graph))'
    )
    page.wait('app.graph._nodes.some(node => node.type.startsWith("LivePhoto"))')
    assert page.evaluate(UNKNOWN) == []
    assert page.evaluate(OVERLAPS) == []
