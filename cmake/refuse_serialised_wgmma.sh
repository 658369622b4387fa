#!/bin/sh
# Runs a compiler, and fails where its assembler serialises a pipeline of WGMMA, on which it only
# remarks.
remarks=$("$@" 2>&1)
status=$?
[ -z "$remarks" ] || printf '%s\n' "$remarks" >&2
case $remarks in *C751[0-9]*) exit 1 ;; esac
exit $status
