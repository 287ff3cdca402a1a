package main

import "regexp"

// rule is a row of the house style: what is not written, and what is written instead.
type rule struct {
	name    string
	pattern *regexp.Regexp
	except  *regexp.Regexp // of a match with the text after it: another meaning
	instead string
	limit   float64 // matches per 10,000 words that may remain; a change lowers it, never raises it
}

var rules = []rule{
	{name: "package ... has", pattern: match(`\APackage \w+ has\b`), instead: "implements, provides", limit: 0.1},
	{name: "tell, told", pattern: match(`(?i)\b(tell|tells|telling|told)\b`), instead: "report, return, distinguish", limit: 2},
	{name: "nobody, somebody", pattern: match(`(?i)\b(nobody|somebody|anybody|everybody|whoever|someone|anyone|everyone)\b`), instead: "no consumer, another consumer, the caller", limit: 2},
	{name: "who only", pattern: match(`(?i)\bwho (only|has|had|is|was|does|never|wants|needs|reads|writes|waits|changes|asks|looks)\b`), instead: "a caller that ..., the consumer that ...", limit: 2.5},
	{name: "What (statement)", pattern: match(`(?:\A|[.:;] )What\b[^.?]*(?:\.|\z)`), except: match(`\?`), instead: "the noun itself", limit: 12.5},
	{name: "is what", pattern: match(`(?i)\b(is|are|was|were) what\b`), instead: "the noun itself", limit: 11},
	{name: "want of", pattern: match(`(?i)\b(for|of) want of\b`), instead: "because it is out of"},
	{name: "answers ErrX", pattern: match(`(?i)\banswers?(ed)? (with )?\[?(redischannels\.)?Err[A-Z]`), instead: "returns ErrX", limit: 0.5},
	{name: "got something else", pattern: match(`(?i)\bgot something else\b`), instead: "the value"},
	{name: "hand over, hand back", pattern: match(`(?i)\bhand(s|ed|ing)?( it| them| [a-z]+ (entry|entries|message|messages))? (over|back|out)\b`), instead: "deliver, release, return", limit: 1.5},
	{name: "give back", pattern: match(`(?i)\b(give|gives|gave|given|giving)( it| them)? back\b`), instead: "release, return", limit: 0.5},
	{name: "settle", pattern: match(`(?i)\bsettl(e|es|ed|ing|ement|ements)\b`), instead: "acknowledge, ack or nack", limit: 2.2},
	{name: "take up", pattern: match(`(?i)\b(take|takes|took|taken|taking)( it| them)? up\b`), instead: "claim"},
	{name: "hold, keep (a lease)", pattern: match(`(?i)\b(hold|holds|held|keep|keeps|kept)( its| the| their| a| his)? leases?\b`), instead: "renew"},
	{name: "walk", pattern: match(`(?i)\b(walk|walks|walked)\b`), except: match(`(?i)walks?( through)? the (sequence|tree)`), instead: "claim scan", limit: 0.6},
	{name: "parked", pattern: match(`(?i)\bparked\b`), instead: "deferred, delayed, returned"},
	{name: "the dead, peers", pattern: match(`(?i)\b(the dead|peers)\b`), except: match(`(?i)\Athe dead[ -](letter|letters|connection|connections|stream|topic|proxy|one|link|node|consumer|consumers|server)\b`), instead: "a crashed consumer, other consumers", limit: 1},
	{name: "made again, anew", pattern: match(`(?i)\b(made again|anew)\b`), instead: "re-create, restart", limit: 0.5},
	{name: "goes on", pattern: match(`(?i)\b(go|goes|going|went|gone) on\b`), except: match(`(?i)\bon (to|from)\b`), instead: "continue, resume", limit: 1},
	{name: "is gone, vanish", pattern: match(`(?i)\b(((is|are|was|were|has|had|be|been) gone)|vanish(es|ed|ing)?)\b`), instead: "trimmed, deleted, lost", limit: 1},
	{name: "rights", pattern: match(`(?i)\b(rights|a right|the right is|this right|no right)\b`), instead: "ACL permissions", limit: 1.5},
}

func match(pattern string) *regexp.Regexp { return regexp.MustCompile(pattern) }

// find returns the places of the words in a text.
func (r rule) find(text string) [][]int {
	found := r.pattern.FindAllStringIndex(text, -1)
	if r.except == nil {
		return found
	}
	var left [][]int
	for _, at := range found {
		if !r.except.MatchString(text[at[0]:min(at[1]+20, len(text))]) {
			left = append(left, at)
		}
	}
	return left
}
