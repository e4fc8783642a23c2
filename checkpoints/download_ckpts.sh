#!/usr/bin/env bash
# Download the official SAM 2 and SAM 2.1 checkpoints into this folder.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: download_ckpts.sh [2.1|2.0|all] [tiny|small|base_plus|large ...] [--dir DIR] [--list] [--dry-run]

  2.1 | 2.0 | all   the family (default: 2.1)
  sizes             which models of it (default: all four)
  --dir DIR         where to put the files (default: the folder of this script)
  --list            print name, bytes, SHA-256 and address of the chosen files, and stop
  --dry-run         print what would be downloaded, and stop

A file is written as NAME.part, resumed after an interruption, checked, and only then renamed.
SAM2_CKPT_URL=URL names a mirror of https://dl.fbaipublicfiles.com/segment_anything_2
TEXT
}

BASE_URL="${SAM2_CKPT_URL:-https://dl.fbaipublicfiles.com/segment_anything_2}"

# family, size, folder on the server, file name, bytes, SHA-256 ('-' = not known).
# The publisher's own script gives addresses only. The SHA-256 values are those pinned by micro-sam for the same
# addresses (github.com/computational-cell-analytics/micro-sam, micro_sam/v2/util.py); the byte counts are those
# that public download scripts check for these addresses, the larger files' beside the same SHA-256 values.
table() {
    cat <<'TABLE'
2.1 tiny      092824 sam2.1_hiera_tiny.pt      156008466 7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69
2.1 small     092824 sam2.1_hiera_small.pt     184416285 6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38
2.1 base_plus 092824 sam2.1_hiera_base_plus.pt 323606802 a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5
2.1 large     092824 sam2.1_hiera_large.pt     898083611 2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318
2.0 tiny      072824 sam2_hiera_tiny.pt        155906050 65b50056e05bcb13694174f51bb6da89c894b57b75ccdf0ba6352c597c5d1125
2.0 small     072824 sam2_hiera_small.pt       184309650 95949964d4e548409021d47b22712d5f1abf2564cc0c3c765ba599a24ac7dce3
2.0 base_plus 072824 sam2_hiera_base_plus.pt   323493298 d0bb7f236400a49669ffdd1be617959a8b1d1065081789d7bbff88eded3a8071
2.0 large     072824 sam2_hiera_large.pt       897952466 7442e4e9b732a508f80e141e7c2913437a3610ee0c77381a66658c3a445df87b
TABLE
}

fail() {
    echo "error: $*" >&2
    exit 1
}

chosen() {
    table | while read -r family size folder name bytes sha256; do
        [[ "$FAMILY" == all || "$FAMILY" == "$family" ]] || continue
        [[ -z "$SIZES" || " $SIZES " == *" $size "* ]] || continue
        echo "$folder $name $bytes $sha256"
    done
}

bytes_of() {
    if [[ -f "$1" ]]; then wc -c <"$1" | tr -d ' '; else echo 0; fi
}

sha256_of() {
    if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d' ' -f1
}

# fetch URL FILE: continue FILE where an earlier run stopped.
fetch() {
    if command -v curl >/dev/null; then
        curl --fail --location --retry 3 --continue-at - --output "$2" "$1"
    elif command -v wget >/dev/null; then
        wget --continue --tries=3 --output-document="$2" "$1"
    else
        fail "neither curl nor wget is on this machine; install one, or download $1 by hand"
    fi
}

# check FILE BYTES SHA256: print what is wrong, nothing when all is well.
check() {
    local bytes sha256
    bytes="$(bytes_of "$1")"
    if [[ "$2" != - && "$bytes" != "$2" ]]; then
        echo "expected $2 bytes, got $bytes"
        return
    fi
    sha256="$(sha256_of "$1")"
    if [[ "$3" == - ]]; then
        echo "note: no SHA-256 is known for $1; unverified: $sha256" >&2
    elif [[ "$sha256" != "$3" ]]; then
        echo "expected SHA-256 $3, got $sha256"
    fi
}

download() {
    local url="$BASE_URL/$1/$2" file="$DIR/$2" wrong
    if [[ -f "$file" ]]; then
        wrong="$(check "$file" "$3" "$4")"
        [[ -z "$wrong" ]] || fail "$file is not the official file ($wrong); move it away and run this again"
        echo "$2: already here"
        return
    fi
    echo "$2: $url"
    # A .part that is too long or complete is not resumed: a server answers an empty remaining range with an error.
    [[ "$3" == - || "$(bytes_of "$file.part")" -le "$3" ]] || rm -f "$file.part"
    if [[ "$3" == - || "$(bytes_of "$file.part")" != "$3" ]]; then
        fetch "$url" "$file.part" || fail "could not download $url; run this again to resume"
    fi
    wrong="$(check "$file.part" "$3" "$4")"
    if [[ -n "$wrong" ]]; then
        rm -f "$file.part"
        fail "$url: $wrong; the download was removed"
    fi
    mv "$file.part" "$file"
    echo "$2: done"
}

FAMILY=2.1
SIZES=""
ACTION=download
DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
while [[ $# -gt 0 ]]; do
    case "$1" in
        2.1 | 2.0 | all) FAMILY="$1" ;;
        tiny | small | base_plus | large) SIZES="$SIZES $1" ;;
        --dir) [[ $# -gt 1 ]] || fail "--dir needs a folder"; DIR="$2"; shift ;;
        --list) ACTION=list ;;
        --dry-run) ACTION=dry_run ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; fail "expected a family, a size or an option, got '$1'" ;;
    esac
    shift
done

[[ "$ACTION" != download ]] || mkdir -p "$DIR"
while read -r folder name bytes sha256; do
    case "$ACTION" in
        list) echo "$name $bytes $sha256 $BASE_URL/$folder/$name" ;;
        dry_run) echo "would download $BASE_URL/$folder/$name to $DIR/$name" ;;
        download) download "$folder" "$name" "$bytes" "$sha256" </dev/null ;;
    esac
done < <(chosen)
