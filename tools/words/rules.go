package main

import "regexp"

// rule is a row of the house style: a pattern that is not written, and its replacement.
type rule struct {
	name    string
	pattern *regexp.Regexp
	except  *regexp.Regexp // matches with the text after them that have another meaning
	instead string
	product bool    // tests are not counted
	limit   float64 // matches per 10,000 words that may remain; a change lowers it, never raises it
}

// rules has the rows of the first table, then those of the second table, then spelling.
var rules = []rule{
	{name: "package ... has", pattern: match(`\APackage \w+ has\b`), instead: "implements, provides"},
	{name: "tell, told", pattern: match(`(?i)\b(tell|tells|telling|told)\b`), instead: "report, return, distinguish", limit: 0.5},
	{name: "answers", pattern: match(`(?i)\b(answers?|answered) (with )?\[?(redischannels\.)?(Err[A-Z]|_|nil\b)|\b(answers|answered|unanswered)\b`), except: match(`(?i)\A(the )?answers (of|that|to|in|whose|from|are|were|questions|so)\b`), instead: "return, reply", limit: 3},
	{name: "nobody, somebody", pattern: match(`(?i)\b(nobody|somebody|anybody|everybody|whoever|someone|anyone|everyone)\b`), instead: "no consumer, another consumer, the caller", limit: 0.6},
	{name: "who", pattern: match(`(?i)\bwho\b`), except: match(`(?i)\Awho (is|are|was|were) (there|here|typing|in the room)\b`), instead: "a channel used only for ..., a caller that ..., the consumer that ...", limit: 3},
	{name: "What (statement)", pattern: match(`(?:\A|[.:;] )What\b[^.?]*(?:\.|\z)`), except: match(`\?`), instead: "the noun itself", limit: 2},
	{name: "is what", pattern: match(`(?i)\b(is|are|was|were|be|becomes?) what\b`), instead: "the noun itself", limit: 2.5},
	{name: "what (noun)", pattern: match(`(?i)\b(of|from|for|by|with|to|in|at|on|behind|beside|except|but|than|as|and|or) what\b|\bwhat (is|are|was|were|has|have|had|it|they|comes?|came|can|cannot|may|must|the|a|an|this|that|only|does|did|follows|fails|failed|happens?|holds|remains)\b`), except: match(`\?`), instead: "the noun itself", product: true, limit: 16},
	{name: "want of", pattern: match(`(?i)\b(for|of) want of\b`), instead: "because it is out of"},
	{name: "got something else", pattern: match(`(?i)\b(got|holds) something else\b`), instead: "the value"},
	{name: "rests on, proves", pattern: match(`(?i)\b(rests on|what proves)\b`), instead: "assumes; tests", limit: 0.2},

	{name: "hand over, hand back", pattern: match(`(?i)\b(hand|hands|handed|handing)( it| them| [a-z]+ (entry|entries|message|messages))? (over|back|out)\b|\bhanded to\b`), instead: "deliver, release, return", limit: 0.3},
	{name: "settle", pattern: match(`(?i)\bsettl(e|es|ed|ing|ement|ements)\b`), instead: "acknowledge, ack or nack", limit: 0.6},
	{name: "give back", pattern: match(`(?i)\b(give|gives|gave|given|giving|put|puts)( it| them| [a-z]+ (entry|entries|message|messages))? back\b`), instead: "release, return, restore", limit: 0.8},
	{name: "take up, take over", pattern: match(`(?i)\b(take|takes|took|taken|taking)( it| them)? (up|back)\b`), instead: "claim, obtain", limit: 1},
	{name: "walk", pattern: match(`(?i)\b(walk|walks|walked|walker|walkers)\b`), instead: "claim scan", limit: 0.5},
	{name: "a look, looks at", pattern: match(`(?i)\b(a|the|its|next|first|last|each|every|one|two|second|claim) looks?\b|\blook(s|ed|ing)? (at|whether|behind)\b`), instead: "scan, check, read", limit: 3},
	{name: "hold, keep (a lease)", pattern: match(`(?i)\b(hold|holds|held|keep|keeps|kept)( its| the| their| a| his)? leases?\b|\bheld (entry|entries|message|messages)\b|\b(entry|entries|message|messages) (that )?(it|he|they|a consumer|the consumer|this process|a process) holds?\b`), instead: "renew, lease; leased, in flight", limit: 0.4},
	{name: "hold back, hold up", pattern: match(`(?i)\b(hold|holds|held|holding)( it| them| up| back)? (back|up)\b|\b(hold|holds|held|holding) (back|up)\b`), instead: "block, delay", limit: 0.5},
	{name: "parked", pattern: match(`(?i)\bpark(s|ed|ing)?\b`), instead: "deferred, delayed, returned"},
	{name: "pass (skip)", pattern: match(`(?i)\b(message|messages|entry|entries|value|values|one|it) (is|are|was|were) passed\b`), except: match(`(?i)passed (to|by|on|through|in|as|into)\b`), instead: "skip", limit: 0.2},
	{name: "give up (a message)", pattern: match(`(?i)\b(message|messages|entry|entries|value|values|it|one) (is|are|was|were|has been) given up\b|\b(give|gives|gave|giving|given) (a|the|its|this|an)? ?(message|messages|entry|entries|value|values|it) up\b|\b(give|gives|gave|given|giving) up (a|the|its|an) (message|entry|value)\b`), instead: "dead-letter"},
	{name: "the dead, dead ones", pattern: match(`(?i)\b(the dead|dead (consumers?|process|processes|publishers?|writers?|ones?|walkers?))\b`), except: match(`(?i)\Athe dead[ -](letter|letters|connection|connections|stream|topic|proxy|link|node|server)\b`), instead: "a crashed consumer", limit: 0.2},
	{name: "peers", pattern: match(`(?i)\bpeers\b`), instead: "other consumers", limit: 0.7},
	{name: "made again, begins anew", pattern: match(`(?i)\b(made again|anew|(begin|begins|began|begun|start|starts|started) (again|afresh))\b`), instead: "re-create, restart, resume", limit: 0.5},
	{name: "goes on", pattern: match(`(?i)\b(go|goes|going|went|gone) on\b`), except: match(`(?i)\bon (to|from)\b`), instead: "continue, resume", limit: 0.6},
	{name: "is gone, vanish", pattern: match(`(?i)\b(((is|are|was|were|has|had|be|been|and) gone)|vanish(es|ed|ing)?)\b`), instead: "trimmed, deleted, lost", limit: 0.7},
	{name: "rights", pattern: match(`(?i)\b(rights|a right|the right (to|is)|this right|no right|missing right)\b`), instead: "ACL permissions", limit: 0.5},

	{name: "for ever", pattern: match(`(?i)\bfor ever\b`), instead: "forever", limit: 0.5},
	{name: "British spelling", pattern: match(`(?i)\b(cancell(ed|ing)|marshall(ed|ing)|neighbours?|behaviours?|honours?|recognise[sd]?|dialled)\b`), instead: "canceled, marshaled, neighbor, behavior", limit: 0.3},
}

func match(pattern string) *regexp.Regexp { return regexp.MustCompile(pattern) }

// find returns the matches in a text.
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
