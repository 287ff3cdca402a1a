package main

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRowsOfInput(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 200_000)
	text := "\n\ufeff" + header + "\r\n" + "a\r\n" + "\r\n  \n" + "b \"\n" + long + "\n" + strings.Repeat("y", maxRow) + "\r\n" + "last"
	in, err := openInput("-", strings.NewReader(text))
	require.NoError(t, err)
	defer in.close()
	require.Equal(t, 5, in.rows)

	want := []row{{3, "a"}, {6, `b "`}, {7, long[:maxRow+2]}, {8, strings.Repeat("y", maxRow)}, {9, "last"}}
	for line, left := range map[int][]row{0: want, 1: want, 2: want, 3: want[1:], 5: want[1:], 6: want[2:], 8: want[4:], 9: nil, 99: nil} {
		rows, err := in.after(line)
		require.NoError(t, err)
		var got []row
		for {
			r, err := rows.next()
			if errors.Is(err, io.EOF) {
				break
			}
			require.NoError(t, err)
			got = append(got, r)
		}
		require.Equal(t, left, got, "after line %d", line)
	}
}

func TestSameContentIsTheSameImport(t *testing.T) {
	t.Parallel()
	ids := make(map[string]bool)
	for _, text := range []string{"a\n", "b\n", "a\nb\n"} {
		for range 2 {
			in, err := openInput("-", strings.NewReader(header+"\n"+text))
			require.NoError(t, err)
			ids[in.id] = true
			in.close()
		}
	}
	require.Len(t, ids, 3)
}

func TestParseOrder(t *testing.T) {
	t.Parallel()
	o, err := parseOrder(`SO-1," Brown, Lee ""& Co."" ",HAM-1,3,19.9,EUR,DE,2024-02-29`)
	require.NoError(t, err)
	require.Equal(t, `Brown, Lee "& Co."`, o.customer)
	require.EqualValues(t, 5970, o.total())

	for text, reason := range map[string]string{
		`SO-1,Anna,HAM-1,3,19.9,EUR,DE`:                                        "malformed CSV: wrong number of fields",
		`SO-1,An"na,HAM-1,3,19.9,EUR,DE,2026-01-01`:                            `malformed CSV: bare " in non-quoted-field`,
		` ,Anna,HAM-1,3,19.9,EUR,DE,2026-01-01`:                                "order ID is missing",
		`SO-1,,HAM-1,3,19.9,EUR,DE,2026-01-01`:                                 "customer is missing",
		`SO-1,Anna,,3,19.9,EUR,DE,2026-01-01`:                                  "SKU is missing",
		`SO-1,Anna,HAM-1,3.5,19.9,EUR,DE,2026-01-01`:                           `quantity "3.5" is not`,
		`SO-1,Anna,HAM-1,10001,19.9,EUR,DE,2026-01-01`:                         `quantity "10001" is not`,
		`SO-1,Anna,HAM-1,3,-1,EUR,DE,2026-01-01`:                               `unit price "-1": is no amount`,
		`SO-1,Anna,HAM-1,3,.5,EUR,DE,2026-01-01`:                               `unit price ".5": is no amount`,
		`SO-1,Anna,HAM-1,3,5.,EUR,DE,2026-01-01`:                               `unit price "5.": is no amount`,
		`SO-1,Anna,HAM-1,3,1.005,EUR,DE,2026-01-01`:                            `unit price "1.005": has more than 2 decimals`,
		`SO-1,Anna,HAM-1,3,1.5,JPY,JP,2026-01-01`:                              `unit price "1.5": has more than 0 decimals`,
		`SO-1,Anna,HAM-1,3,99999999999999999999,EUR,DE,2026-01-01`:             "is too large",
		`SO-1,Anna,HAM-1,3,19.9,eur,DE,2026-01-01`:                             `currency "eur" is unknown`,
		`SO-1,Anna,HAM-1,3,19.9,EUR,Germany,2026-01-01`:                        `country "Germany" is no code`,
		`SO-1,Anna,HAM-1,3,19.9,EUR,DE,01.02.2026`:                             `date "01.02.2026" does not exist`,
		"SO-1,An\xffna,HAM-1,3,19.9,EUR,DE,2026-01-01":                         "row is not UTF-8",
		"SO-1," + strings.Repeat("a", maxRow) + ",HAM-1,3,1,EUR,DE,2026-01-01": "row is longer than",
	} {
		_, err := parseOrder(text)
		require.ErrorContains(t, err, reason, text)
	}
}

func TestFormatAmount(t *testing.T) {
	t.Parallel()
	for want, got := range map[string]string{
		"0.05":         formatAmount(5, "EUR"),
		"1,234.50":     formatAmount(123450, "EUR"),
		"999":          formatAmount(999, "JPY"),
		"1,000,000":    formatAmount(1_000_000, "JPY"),
		"12,345,678.9": strings.TrimSuffix(formatAmount(1234567890, "USD"), "0"),
	} {
		require.Equal(t, want, got)
	}
}

// On a terminal lines stand above the progress, which is always the last one.
func TestScreenOnTerminal(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	s := newScreen(&out)
	s.terminal = true
	s.printf("begin")
	s.progress("1 of 2")
	s.printf("an event")
	s.progress("2 of 2")
	s.finish()
	s.printf("end")
	require.Equal(t, "begin\n"+clearLine+"1 of 2"+clearLine+"an event\n1 of 2"+clearLine+"2 of 2\nend\n", out.String())
}
