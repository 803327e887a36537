"""The workbench: the page of an explanation, live, in a browser on this computer; and the same page in notebooks."""
