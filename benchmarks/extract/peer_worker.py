"""Runs in the peer's environment: parses the WAT named on its command line whenever a line comes in."""

import io
import json
import sys
import time
from pathlib import Path

from cc2dataset.main import extract_documents_from_wat

wat = Path(sys.argv[1]).read_bytes()
for question in sys.stdin:
    start = time.process_time()
    found = extract_documents_from_wat(io.BytesIO(wat), "image")
    seconds = time.process_time() - start
    answer = seconds if question == "parse\n" else [(pair["url"], pair["alt"]) for pair in found]
    print(json.dumps(answer), flush=True)
