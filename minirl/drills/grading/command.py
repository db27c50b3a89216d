"""python -m minirl grade submissions/ --out grades.csv"""

import argparse
from pathlib import Path

from tqdm import tqdm

from minirl.drills import names
from minirl.drills.grading.grade import grade
from minirl.drills.grading.report import summary, write_grades, write_pages
from minirl.drills.grading.sandbox import Sandbox
from minirl.drills.grading.submissions import asked, read_submissions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("submissions", type=Path, metavar="FOLDER", help="NAME.py or NAME.ipynb for each student")
    parser.add_argument("--out", type=Path, default=Path("grades.csv"), help="the table to write (grades.csv)")
    parser.add_argument("--reports", type=Path, help="folder for a page a student (beside the table: grades_reports)")
    parser.add_argument("--drills", help="a,b,c or a text file with one name a line (all that any submission defines)")
    parser.add_argument("--seconds", type=float, default=10.0, help="for one drill (10)")
    parser.add_argument("--import-seconds", type=float, default=20.0, help="for running the file itself (20)")
    parser.add_argument("--memory", type=float, default=2.0, help="GB for one submission, beside torch (2)")


def run(args: argparse.Namespace) -> int:
    """Grades a folder. ValueError for a bad argument; 0 whatever the submissions did."""
    for name in ("seconds", "import_seconds", "memory"):
        if not getattr(args, name) > 0:
            raise ValueError(f"--{name.replace('_', '-')}: wanted more than 0, got {getattr(args, name):g}")
    if args.out.is_dir() or not args.out.absolute().parent.is_dir():
        raise ValueError(f"--out: wanted a file in a folder that exists, got {str(args.out)!r}")
    reports = args.reports or args.out.with_name(f"{args.out.stem}_reports")
    if reports.exists() and not reports.is_dir():
        raise ValueError(f"--reports: wanted a folder, got the file {str(reports)!r}")
    submissions = read_submissions(args.submissions)
    drills = asked(args.drills, submissions, names())
    limits = {"seconds": args.seconds, "import_seconds": args.import_seconds}
    marks = []
    cpu_seconds = int(2 * (args.import_seconds + args.seconds * len(drills))) + 60
    with Sandbox(memory=int(args.memory * 1e9), cpu_seconds=cpu_seconds) as sandbox:
        for submission in (bar := tqdm(submissions, unit="submission")):
            bar.set_postfix_str(submission.student[:30])
            marks.append(grade(submission, drills, sandbox, **limits))
        held = sandbox.held
    write_grades(args.out, drills, marks)
    write_pages(reports, marks)
    print(summary(drills, marks, held))
    print(f"{args.out}: {len(marks)} students, {len(drills)} drills; a page for each in {reports}")
    return 0
