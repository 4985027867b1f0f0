"""The runbook's commands agree with each other and install pinned versions.

That they parse and name what exists is checked for all pages, in tests/unit/test_pages.py.
"""

import re

from tests.deploy.chart import PROFILES, ROOT, render

EKS = ROOT / "deploy" / "eks"
PAGES = {name: (EKS / f"{name}.md").read_text() for name in ("README", "day-two")}
IMAGES = """
image:
  leader: {repository: r/leader, digest: ""}
  follower: {repository: r/follower, digest: ""}
"""


def blocks(page: str) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    text = "\n".join(block for page in PAGES for block in blocks(page))
    return re.sub(r"\\\n\s*", " ", text).splitlines()


def test_every_chart_is_pinned():
    installs = [line for line in commands() if line.startswith("helm install")]
    theirs = [line for line in installs if "deploy/helm/rufus-serve" not in line]
    assert len(theirs) >= 4
    assert [line for line in theirs if not re.search(r"--version \d+\.\d+\.\d+", line)] == []


def test_nothing_is_installed_twice_and_namespaces_exist():
    """eksctl installs a Neuron plug-in of its own, whose names clash with those of AWS's chart."""
    lines = commands()
    (create,) = [line for line in lines if line.startswith("eksctl create cluster")]
    assert "--install-neuron-plugin=false" in create
    made = {line.split()[-1] for line in lines if line.startswith("kubectl create namespace")}
    assert made == {"models", "neuron-healthcheck-system"}
    used = set(re.findall(r"-n ([\w-]+)", " ".join(line for line in lines if "helm" in line)))
    assert used - made - {"kube-system", "lws-system"} == set()


def test_the_runbooks_values_render(helm, tmp_path):
    """With what step 2 writes, for each step's own `--set`."""
    images = tmp_path / "values-images.yaml"
    images.write_text(IMAGES)
    files = [PROFILES["trn1.32xlarge"], EKS / "values-70b.yaml", images]
    for sets in ([], ["replicas=0"]):
        assert render(*sets, values=files)


def test_names_that_the_runbook_waits_for_are_those_of_the_values():
    pods = set(re.findall(r"pod/([\w-]+)-0", " ".join(PAGES.values())))
    names = {
        re.search(r"^fullnameOverride: (\S+)$", file.read_text(), re.MULTILINE)[1]
        for file in EKS.glob("values-*b.yaml")
    }
    assert pods <= names


def test_planner_and_doctor_are_steps():
    text = "\n".join(blocks("README"))
    assert text.index("rufus-serve plan") < text.index("images.sh")
    assert text.index("helm test") < text.rindex("helm upgrade")


def test_there_is_a_section_on_nodes_that_are_taken_back():
    assert "## Nodes that are taken back" in PAGES["day-two"]
    assert "values-spot.yaml" in PAGES["day-two"]


def test_nothing_that_was_made_is_left_billed():
    """Every kind that the runbook makes is asked for after it was removed."""
    tear_down = PAGES["day-two"].split("## Tear down")[1]
    for kind in ("instances", "file-systems", "load-balancers", "nat-gateways", "volumes"):
        assert f"describe-{kind}" in tear_down, kind
    assert "ecr delete-repository" in tear_down
